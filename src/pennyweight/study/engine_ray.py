"""Trials on a Ray cluster, https://docs.ray.io: the extra `ray`.

Each worker is an actor that holds the function, and with it what the function opened. An item whose
worker died is done again by the worker that takes its place; results are handed back in the order
of the items, and only the caller writes records, so that none is written twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pennyweight.core import PennyweightError, UnsupportedError
from pennyweight.study.engine import Item, Result

AHEAD = 2  # items that wait at each worker, so that none is idle while a result travels
RESTARTS = 8  # of one worker, and attempts at one item, before the study stops


@dataclass(kw_only=True)
class RayEngine:
    """Every process must see the model, the texts and the work folder under the same paths."""

    address: str | None = None  # of a cluster that runs; None: one on this machine, until `close`
    workers: int | None = None  # None: one for each CPU of the cluster
    _joined: bool = field(default=False, init=False)  # by us, so that we leave it again

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Raises UnsupportedError if Ray is not installed or there is no cluster."""
        if not items:
            return
        ray = _ray()
        self._join(ray)
        count = self.workers or int(ray.cluster_resources().get("CPU", 1))
        kind = ray.remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS)(_Actor)
        held = ray.put(function)
        actors = [kind.remote(held) for _ in range(min(count, len(items)))]
        try:
            yield from _in_order(ray, actors, items)
        finally:
            for actor in actors:
                ray.kill(actor)

    def _join(self, ray: Any) -> None:
        """Connect once; a cluster that the caller had joined already is used as it is."""
        if ray.is_initialized():
            return
        local = {"num_cpus": self.workers, "include_dashboard": False}
        where = {"address": self.address} if self.address else local
        try:
            ray.init(**where, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UnsupportedError(
                f"engine ray: no cluster at {self.address or 'this machine'} ({error!s:.200}); "
                "start one with `ray start --head`, or leave --address out"
            ) from None
        self._joined = True

    def close(self) -> None:
        if self._joined:
            _ray().shutdown()
            self._joined = False


class _Actor:
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def run(self, item: Any) -> Any:
        return self._function(item)


def _in_order(ray: Any, actors: Sequence[Any], items: Sequence[Any]) -> Iterator[Any]:
    """Each actor's next item is sent when the first of those under way is done."""
    waiting: deque[Any] = deque()
    for number, item in enumerate(items):
        if len(waiting) == AHEAD * len(actors):
            yield _result(ray, waiting.popleft())
        waiting.append(actors[number % len(actors)].run.remote(item))
    while waiting:
        yield _result(ray, waiting.popleft())


def _result(ray: Any, reference: Any) -> Any:
    """Raises the item's own error if it is the user's, UnsupportedError if its workers died."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PennyweightError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise UnsupportedError(
            f"engine ray: a worker and {RESTARTS} replacements died ({error!s:.200}); what was "
            "measured is kept. Look at the memory of its node, then repeat the command"
        ) from None


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UnsupportedError(
            "engine ray: Ray is not installed; pip install 'pennyweight[ray]', or --engine local"
        ) from None
    return ray
