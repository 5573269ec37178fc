"""Where a number comes from: versions, machine, time and memory."""

from __future__ import annotations

import functools
import os
import platform
import resource
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pennyweight

PACKAGES = ("torch", "transformers", "compressed-tensors", "numpy", "scipy")


@dataclass(frozen=True)
class Clock:
    """Started where the work starts; `provenance(clock)` then says what it took."""

    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started


def provenance(clock: Clock | None = None) -> dict[str, Any]:
    """The fields of a Record that do not depend on what was measured."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return {
        "versions": versions(),
        "machine": machine(),
        "wall_time_s": None if clock is None else clock.elapsed_s,
        "peak_bytes": peak,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def versions() -> Mapping[str, str]:
    """Ours, those of the packages that compute, and the commit if this runs from a checkout."""
    found = {"pennyweight": pennyweight.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if commit := _commit():
        found["commit"] = commit
    return found


def machine() -> str:
    """The processor's architecture, the cores this process may use, and the memory."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{platform.system()} {platform.machine()}, {cores} cores, {memory_gib:.0f} GiB"


def _commit() -> str | None:
    root = Path(pennyweight.__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None  # without git the other versions have to do
    return found.stdout.strip() or None
