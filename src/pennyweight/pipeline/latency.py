"""The verb `costs`: how long each product of a model takes in each scheme, on this machine."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pennyweight.core import Progress, RecipeError, UnsupportedError
from pennyweight.deploy.kernel_times import KernelTime, LeftOut, Timing, kernel_times
from pennyweight.formats.schemes import UNTOUCHED, parse_scheme
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.resolve import resolve_model
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.writer import write_text
from pennyweight.pipeline.survey import Survey, survey
from pennyweight.records import provenance

SCHEMES = ("W4A16_g128", "W4A16_g32", "W8A16", "W8A8", UNTOUCHED)  # servable, and with kernels
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
MOST_BETWEEN = 256 * 2**20  # bytes; more than caches hold, and reading more only takes time


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """What was measured, and how."""

    model: str
    dtype: str
    timing: Timing
    threads: int
    times: tuple[KernelTime, ...]
    left_out: tuple[LeftOut, ...]

    def to_dict(self) -> dict[str, Any]:
        """The content of a cost file (`study.planning.costs`): seconds of a product."""
        made = provenance()
        return {
            "name": "latency", "unit": "s",
            "cost": [
                {"shape": list(t.shape), "scheme": t.scheme, "value": t.seconds, "lower": t.lower,
                 "upper": t.upper, "kernel": t.kernel}
                for t in self.times
            ],
            "left_out": [asdict(each) for each in self.left_out],
            "measured": {
                "model": self.model, "dtype": self.dtype, "tokens": self.timing.tokens,
                "threads": self.threads, "rounds": self.timing.rounds,
                "between_bytes": self.timing.between_bytes, "seed": self.timing.seed,
                "processor": processor(), "machine": made["machine"],
                "versions": made["versions"], "made_at": made["made_at"],
            },
        }  # fmt: skip

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be timed."""

    model: str
    schemes: tuple[str, ...] = SCHEMES
    dtype: str | None = None  # one of DTYPES; None: the checkpoint's
    tokens: int = 1
    rounds: int = 30
    seed: int = 0
    trust_remote_code: bool = False


def measure_latencies(
    asked: Asked, *, threads: int | None = None, progress: Progress | None = None
) -> Latencies:
    """Time every shape of the model's linears, alone and as engines fuse them.

    Untouched linears are always among the schemes, to compare with. Raises UnknownNameError for a
    scheme or RecipeError for a dtype that there is not, UnsupportedError where no scheme has a
    kernel, NumericalError for a kernel that computes something else.
    """
    progress = progress or Progress()
    for name in asked.schemes:
        if name != UNTOUCHED:
            parse_scheme(name)
    seen = survey(Skeleton.build(
        Checkpoint.open(resolve_model(asked.model)), asked.trust_remote_code
    ))  # fmt: skip
    dtype = _dtype(asked.dtype, seen.skeleton.dtype)
    timing = Timing(
        dtype=DTYPES[dtype], tokens=asked.tokens, rounds=asked.rounds, seed=asked.seed,
        between_bytes=_bytes_between(seen, DTYPES[dtype]),
    )  # fmt: skip
    schemes = tuple(dict.fromkeys((*asked.schemes, UNTOUCHED)))
    times, left_out = [], []
    with _threads(threads) as used:
        for shape in shapes(seen):
            progress.say(f"timing {shape[0]} x {shape[1]} in {len(schemes)} schemes")
            found, without = kernel_times(shape, schemes, timing)
            times += found
            left_out += without
    if {each.scheme for each in times} == {UNTOUCHED} != set(schemes):
        why = "; ".join(dict.fromkeys(f"{each.scheme}: {each.why}" for each in left_out))
        raise UnsupportedError(f"no scheme has a kernel for {asked.model} here: {why}")
    return Latencies(
        model=asked.model, dtype=dtype, timing=timing, threads=used, times=tuple(times),
        left_out=tuple(dict.fromkeys(left_out)),
    )  # fmt: skip


def shapes(seen: Survey) -> list[tuple[int, int]]:
    """[out, in] of every linear and of every product that engines make of several, each once."""
    alone = [site.shape for site in seen.sites]
    together = [(sum(site.shape[0] for site in sites), sites[0].shape[1]) for sites in seen.fused()]
    return sorted(set(alone + together))


def processor() -> str:
    """The name of the processor, and the vector instructions that torch uses on it."""
    found = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        found = names[0] if names else found
    return f"{found}, {torch.backends.cpu.get_cpu_capability()}"


def _bytes_between(seen: Survey, dtype: torch.dtype) -> int:
    """What the model reads between two uses of a weight: all its other linears."""
    weights = sum(rows * cols for rows, cols in (site.shape for site in seen.sites))
    return min(MOST_BETWEEN, weights * dtype.itemsize)


def _dtype(asked: str | None, own: torch.dtype) -> str:
    name = asked or str(own).removeprefix("torch.")
    if name not in DTYPES:
        raise RecipeError(f"--dtype {name}: expected one of {', '.join(DTYPES)}")
    return name


@contextmanager
def _threads(threads: int | None) -> Iterator[int]:
    """So many of torch's threads; as many as it has if None."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def by_shape(times: Sequence[KernelTime]) -> Mapping[tuple[int, int], Mapping[str, KernelTime]]:
    """Shape -> scheme -> time."""
    found: dict[tuple[int, int], dict[str, KernelTime]] = {}
    for each in times:
        found.setdefault(each.shape, {})[each.scheme] = each
    return found
