"""Make src/pennyweight/formats/gauss.safetensors: the points that round Gaussian numbers best.

    python tools/make_gauss_grids.py

A grid of n points in dimension p = 1 or 2 that minimises the mean squared error of a standard
normal vector rounded to its nearest point (HIGGS, Malinovskii et al. 2024, arXiv:2411.17525,
section 4). Lloyd's algorithm on a fine quadrature of the density; in two dimensions from several
seeded starts, the best of which is run until it stands still. Same command, same points.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

OUT = Path(__file__).parents[1] / "src" / "pennyweight" / "formats" / "gauss.safetensors"
REACH = 6.0  # standard deviations: beyond lie 2e-9 of the mass
STARTS = 12  # in the plane, where Lloyd's algorithm ends in a minimum that need not be the least
ROUNDS = 20_000  # on the line: until it stands still


def quadrature(steps: int) -> tuple[Tensor, Tensor]:
    """(points [n, 2], weights [n]) of the standard normal density in the plane, float64."""
    edges = torch.linspace(-REACH, REACH, steps + 1, dtype=torch.float64)
    points = torch.cartesian_prod(mean_within(edges), mean_within(edges))
    weights = torch.special.ndtr(edges).diff()
    weights = (weights[:, None] * weights).view(-1)
    near = points.norm(dim=1) < REACH
    return points[near], weights[near] / weights[near].sum()


def mean_within(edges: Tensor) -> Tensor:
    """Of a standard normal number, given between which two neighbouring edges it lies."""
    density = (-(edges**2) / 2).exp() / (2 * torch.pi) ** 0.5
    return -density.diff() / torch.special.ndtr(edges).diff()


def line(count: int) -> tuple[Tensor, float]:
    """The Lloyd-Max quantizer of the standard normal density, by its closed form."""
    centers = torch.linspace(-3, 3, count, dtype=torch.float64)
    ends = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)
    for _ in range(ROUNDS):
        edges = torch.cat([ends[:1], (centers[1:] + centers[:-1]) / 2, ends[1:]])
        centers = mean_within(edges)
    mass = torch.special.ndtr(edges).diff()
    return centers[:, None], 1 - float((mass * centers**2).sum())


def lloyd(centers: Tensor, points: Tensor, weights: Tensor, rounds: int) -> tuple[Tensor, float]:
    """Centers after `rounds` steps, or when they stand still; and their mean squared error."""
    weighted = points * weights[:, None]
    for _ in range(rounds):
        nearest = assign(points, centers)
        mass = torch.zeros(len(centers), dtype=torch.float64).index_add_(0, nearest, weights)
        sums = torch.zeros_like(centers).index_add_(0, nearest, weighted)
        moved = torch.where(mass[:, None] > 0, sums / mass[:, None], centers)
        still, centers = (moved - centers).abs().max() < 1e-7, moved
        if still:
            break
    error = (points - centers[assign(points, centers)]).square().sum(1)
    inside = 2 - (points.square().sum(1) * weights).sum()  # the variance within the cells
    return centers, float((error * weights).sum() + inside) / 2


def assign(points: Tensor, centers: Tensor) -> Tensor:
    half = centers.square().sum(1) / 2
    chunks = [(part @ centers.T - half).argmax(1) for part in points.split(2**15)]
    return torch.cat(chunks)


def plane(count: int) -> tuple[Tensor, float]:
    coarse, fine = quadrature(240), quadrature(800)
    tries = []
    for seed in range(STARTS):
        generator = torch.Generator().manual_seed(seed)
        start = 1.4 * torch.randn(count, 2, generator=generator, dtype=torch.float64)
        tries.append(lloyd(start, *coarse, rounds=300))
    best = min(tries, key=lambda found: found[1])[0]
    best, _ = lloyd(best, *coarse, rounds=4000)
    return lloyd(best, *fine, rounds=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    grids = {}
    for bits in (2, 3, 4):
        for dim in (1, 2):
            centers, error = (line if dim == 1 else plane)(2 ** (bits * dim))
            order = sorted(range(len(centers)), key=lambda i: centers[i].tolist())
            grids[f"p{dim}_b{bits}"] = centers[order].float().contiguous()
            print(f"p={dim} bits={bits}: {len(centers)} points, mean squared error {error:.6f}")
    save_file(grids, out, metadata={"made_by": "python tools/make_gauss_grids.py"})


if __name__ == "__main__":
    main()
