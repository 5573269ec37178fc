"""Workers on a Ray cluster, and what each of them is at.

Items are handed out here, one at a time to whichever worker is free: what a dead worker was at is
done again by another one, also where there is no room for a worker in its place. Results are handed
back in the order of the items, and only the caller writes records, so that none is written twice.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pennyweight.core import PennyweightError, UnsupportedError

ATTEMPTS = 4  # at one item, and starts in a row that may fail, before the work stops
AHEAD = 4  # items for each worker that may be done before the first that is not
PATIENCE_S = 300.0  # for the first worker to start: on a busy machine imports take a minute


class Crew:
    """Workers that hold one function; they stay until they are dismissed."""

    def __init__(self, ray: Any, hire: Callable[[], Any]) -> None:
        """hire: a new worker, an actor with `ready` and `run`."""
        self._ray, self._hire = ray, hire
        self._free: deque[Any] = deque()  # workers without an item
        # A reference to what is to come -> its worker, and the number of the item. Without a
        # number it is the worker that is to come.
        self._doing: dict[Any, tuple[Any, int | None]] = {}
        self._failed_starts = 0

    def results(self, items: Sequence[Any], size: int) -> Iterator[Any]:
        """In the order of the items, by so many workers. Before the caller looks at a result, who
        is free has got the next item. Raises the item's own error if it is the user's."""
        self._items, self._size = items, size
        self._todo = deque(range(len(items)))  # numbers of items that no worker is at
        self._done: dict[int, Any] = {}  # number -> result or RayTaskError, until its turn comes
        self._attempts: Counter[int] = Counter()
        self._turn = 0
        while len(self._free) + len(self._doing) < size:
            self._start()
        while self._turn < len(items):
            self._send()
            if self._turn not in self._done:
                self._wait()
                continue
            found = self._done.pop(self._turn)
            self._turn += 1
            if not isinstance(found, self._ray.exceptions.RayTaskError):
                yield found
            elif isinstance(found.cause, PennyweightError):
                raise found.cause from None
            else:
                raise found

    def dismiss(self) -> None:
        if self._ray.is_initialized():  # else they ended with the connection
            for worker in [*self._free, *(worker for worker, _ in self._doing.values())]:
                self._ray.kill(worker)
        self._free.clear()
        self._doing.clear()

    def _start(self) -> None:
        worker = self._hire()
        self._doing[worker.ready.remote()] = worker, None

    def _send(self) -> None:
        while self._free and self._todo and self._todo[0] < self._turn + AHEAD * self._size:
            worker, number = self._free.popleft(), self._todo.popleft()
            self._doing[worker.run.remote(self._items[number])] = worker, number

    def _wait(self) -> None:
        """Until something has come, or for the time that a worker may take to start."""
        come, _ = self._ray.wait(list(self._doing), timeout=PATIENCE_S)
        if not come and all(number is None for _, number in self._doing.values()):
            raise UnsupportedError(
                f"engine ray: no worker could be started within {PATIENCE_S:.0f} s; the cluster "
                f"has {self._ray.cluster_resources().get('CPU', 0):g} CPUs, of which "
                f"{self._ray.available_resources().get('CPU', 0):g} are free, and a worker needs 1"
            )
        for reference in come:
            self._take(reference)

    def _take(self, reference: Any) -> None:
        worker, number = self._doing.pop(reference)
        errors = self._ray.exceptions
        try:
            found = self._ray.get(reference)
        except errors.RayTaskError as error:  # of the function: the worker lives
            found = error
        except errors.RayError as error:  # the worker is gone, its node, or what it had found
            self._replace(worker, number, error)
            return
        self._free.append(worker)
        if number is None:
            self._failed_starts = 0
        else:
            self._done[number] = found

    def _replace(self, worker: Any, number: int | None, error: Exception) -> None:
        """Raises UnsupportedError where that would go on for ever."""
        self._ray.kill(worker)
        if number is None:
            self._failed_starts += 1
            if self._failed_starts > ATTEMPTS or getattr(error, "actor_init_failed", False):
                raise UnsupportedError(
                    f"engine ray: a worker could not be started ({_last_line(error)}); every node "
                    "needs the same pennyweight, and the same files under the same paths"
                ) from None
        else:
            self._attempts[number] += 1
            if self._attempts[number] == ATTEMPTS:
                raise UnsupportedError(
                    f"engine ray: {ATTEMPTS} workers died at item {number + 1} of "
                    f"{len(self._items)} ({_last_line(error)}); what was measured is kept. Look at "
                    "the memory of their nodes, then repeat the command"
                ) from None
            self._todo.appendleft(number)
        self._start()


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[-1].strip():.200}"
