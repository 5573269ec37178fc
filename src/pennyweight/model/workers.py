"""Parallelism that cannot change a result.

Every task runs on one thread, and how the work is cut into tasks never depends on how many threads
there are. So a sum is always added up in the same order, and the same command gives the same bytes
on one core and on sixty-four. (Splitting one matrix product over threads does not have that
property.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from pennyweight.model.memory import keep_little

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """`threads` workers, each of which computes on one thread."""

    def __init__(self, pool: ThreadPoolExecutor, threads: int) -> None:
        self._pool, self.threads = pool, threads

    def map(self, task: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Results in the order of the items; the first exception is raised."""

        def run(item: Item) -> Result:
            with torch.inference_mode():
                return task(item)

        return list(self._pool.map(run, items))


@contextmanager
def start_workers(threads: int | None = None) -> Iterator[Workers]:
    """Workers for the length of a `with` block, by default one per core this process may use."""
    threads = threads or len(os.sched_getaffinity(0))
    keep_little()  # before there are threads
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield Workers(pool, threads)
    finally:
        torch.set_num_threads(before)
