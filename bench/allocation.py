"""How long the exact allocation takes, and what the others lose against it.

    python bench/allocation.py [--units 2000] [--schemes 8]

Synthetic units: sizes as in a transformer, losses of a quarter for each bit more, spread as they
are found (log-normal). Three kinds of problem: all different, seven kinds of equal units, and equal
costs (where many assignments cost the same). Both directions, a tight, a middle and a loose budget.
"""

import argparse
import math
import random
import resource
import time

from pennyweight.allocate import ALLOCATORS
from pennyweight.allocate.base import Option, Problem, Unit

SIZES = (1, 4, 4, 11)  # MiB of weights, relative


def unit(name: str, schemes: int, generator: random.Random, size: float | None) -> Unit:
    sensitivity = generator.lognormvariate(0, 1.5)
    size = size or 2**20 * generator.choice(SIZES) * generator.uniform(0.9, 1.1)
    bits = [2.25 + 0.75 * step for step in range(schemes)]
    options = tuple(
        Option(
            scheme=f"S{step}",
            loss=1e-5 * sensitivity * 4 ** -bits[step] * generator.lognormvariate(0, 0.2),
            cost=round(size * bits[step] / 8),
        )
        for step in range(schemes)
    )
    return Unit(name=name, options=options)


def units(kind: str, count: int, schemes: int) -> tuple[Unit, ...]:
    generator = random.Random(f"{kind} 0")
    if kind == "alike":
        kinds = [unit("", schemes, generator, None) for _ in range(7)]
        return tuple(Unit(name=f"u{i}", options=kinds[i % 7].options) for i in range(count))
    size = 2**20 if kind == "equal costs" else None
    return tuple(unit(f"u{i}", schemes, generator, size) for i in range(count))


def problem(found: tuple[Unit, ...], minimise: str, share: float) -> Problem:
    one = Problem(units=found, minimise=minimise, budget=0.0)
    low, high = (
        math.fsum(end(map(one.weight, each.options)) for each in found) for end in (min, max)
    )
    return Problem(units=found, minimise=minimise, budget=low * (high / low) ** share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=2000)
    parser.add_argument("--schemes", type=int, default=8)
    asked = parser.parse_args()
    exact, greedy = ALLOCATORS["exact"](), ALLOCATORS["greedy"]()
    slowest = 0.0
    print("| problem | minimise | budget | exact, s | proven gap | greedy is worse by |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for kind in ("different", "alike", "equal costs"):
        found = units(kind, asked.units, asked.schemes)
        for minimise in ("cost", "loss"):
            for share in (0.05, 0.5, 0.8):
                one = problem(found, minimise, share)
                started = time.monotonic()
                best = exact(one)
                elapsed = time.monotonic() - started
                slowest = max(slowest, elapsed)
                worse = getattr(greedy(one), minimise) / getattr(best, minimise) - 1
                print(
                    f"| {kind} | {minimise} | {share:.0%} | {elapsed:.2f} | {best.gap:.1g} | "
                    f"{worse:.4%} |",
                    flush=True,
                )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"slowest {slowest:.2f} s; peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
