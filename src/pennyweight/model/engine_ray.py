"""Work on a Ray cluster, https://docs.ray.io: the extra `ray`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pennyweight.core import UnsupportedError
from pennyweight.model.crew import Crew
from pennyweight.model.engine import Item, Result

CONNECT_S = 20.0
STORE_BYTES = 256 * 2**20  # of a cluster of our own; Ray's 30 % of the memory are not needed


@dataclass(kw_only=True)
class RayEngine:
    """Every process must see the model, the texts and the work folder under the same paths; paths
    that are not absolute are taken from the folder that the caller is in.

    Workers stay for the next call with the same function, and with them what it has opened.
    """

    address: str | None = None  # of a cluster that runs; None: one on this machine, until `close`
    workers: int | None = None  # None: one for each CPU of the cluster
    _joined: bool = field(default=False, init=False)  # by us, so that we leave it again
    _crew: tuple[Any, str, Crew] | None = field(default=None, init=False)  # function, folder

    is_local = False

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Raises UnsupportedError if Ray is not installed, there is no cluster, no worker can be
        started, or one item's workers keep dying."""
        if not items:
            return
        ray = _ray()
        self._join(ray)
        count = self.workers or int(ray.cluster_resources().get("CPU", 1))
        crew = self._crew_for(ray, function)
        try:
            yield from crew.results(items, min(count, len(items)))
        except BaseException:
            self._dismiss()  # they are still at what nobody waits for
            raise

    def _crew_for(self, ray: Any, function: Callable[[Any], Any]) -> Crew:
        folder = os.getcwd()
        if self._crew is None or self._crew[0] is not function or self._crew[1] != folder:
            self._dismiss()
            # Ray's own retries wait for a node as large as the one that died; a crew does not.
            kind = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Worker)
            held = ray.put(function)
            self._crew = function, folder, Crew(ray, lambda: kind.remote(held, folder))
        return self._crew[2]

    def _dismiss(self) -> None:
        if self._crew is not None:
            self._crew[2].dismiss()
            self._crew = None

    def _join(self, ray: Any) -> None:
        """Connect once; a cluster that the caller had joined already is used as it is."""
        if ray.is_initialized():
            return
        self._crew = None  # of another connection
        if self.address:
            _require_listener(self.address)
        local = {
            "num_cpus": self.workers, "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
        }  # fmt: skip
        where = {"address": self.address} if self.address else local
        try:
            ray.init(**where, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _no_cluster(self.address or "this machine", error) from None
        self._joined = True

    def close(self) -> None:
        self._dismiss()
        if self._joined:
            _ray().shutdown()
            self._joined = False


class _Worker:
    """A process with a function, in the folder that the caller is in."""

    def __init__(self, function: Callable[[Any], Any], folder: str) -> None:
        os.chdir(folder)
        self._function = function

    def ready(self) -> None:
        """Comes back when the worker has started."""

    def run(self, item: Any) -> Any:
        return self._function(item)


def _require_listener(address: str) -> None:
    """Raises UnsupportedError if nobody listens there: Ray itself would try for a quarter of an
    hour. What has no port, such as `auto`, Ray looks up and finds or does not."""
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        if place.hostname and place.port:
            socket.create_connection((place.hostname, place.port), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> UnsupportedError:
    return UnsupportedError(
        f"engine ray: no cluster at {address} ({error!s:.200}); start one with `ray start --head`, "
        "or leave --address out"
    )


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UnsupportedError(
            "engine ray: Ray is not installed; pip install 'pennyweight[ray]', or --engine local"
        ) from None
    return ray
