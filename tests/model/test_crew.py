"""Who does what, on a Ray that is made up: workers finish in any order and die at any time."""

from collections import Counter
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import DataError, UnsupportedError
from pennyweight.model import crew
from pennyweight.model.crew import AHEAD, ATTEMPTS, Crew


class RayError(Exception):
    actor_init_failed = False


class RayTaskError(RayError):
    def __init__(self, cause) -> None:
        self.cause = cause


class MadeUp:
    """What a crew uses of Ray. `room`: workers that there is a place for; `fate(item)`: how often
    the worker that is at it dies."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, seed: int, room: int, fate=lambda item: 0) -> None:
        self.random, self.room, self.fate = Random(seed), room, fate
        self.alive, self.deaths, self.done = set(), Counter(), []
        self.hired = 0

    def hire(self):
        self.hired += 1
        name = self.hired
        call = lambda what: SimpleNamespace(remote=lambda *item: (name, what, *item))
        return SimpleNamespace(name=name, ready=call("ready"), run=call("run"))

    def wait(self, references, timeout):
        there = [r for r in references if r[1] == "run" or len(self.alive) < self.room]
        if not there:
            return [], references
        chosen = self.random.choice(there)
        if chosen[1] == "ready":
            self.alive.add(chosen[0])
        return [chosen], [r for r in references if r != chosen]

    def get(self, reference):
        worker, what, *item = reference
        assert worker in self.alive
        if what == "ready":
            return None
        if self.deaths[item[0]] < self.fate(item[0]):
            self.deaths[item[0]] += 1
            self.alive.discard(worker)
            self.room = max(1, self.room - 1)  # its node went with it
            raise RayError("first line\nthe node is gone")
        self.done.append(item[0])
        if item[0] < 0:
            raise RayTaskError(DataError(f"{item[0]} is below 0") if item[0] > -9 else KeyError(9))
        return item[0] ** 2

    def kill(self, worker) -> None:
        self.alive.discard(worker.name)

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self):
        return {"CPU": 3.0}

    available_resources = cluster_resources


@given(
    seed=st.integers(0, 999), count=st.integers(1, 30), size=st.integers(1, 6),
    room=st.integers(1, 6),
    deadly=st.dictionaries(st.integers(0, 29), st.integers(1, ATTEMPTS - 1)),
)  # fmt: skip
def test_every_result_comes_once_and_in_order(seed, count, size, room, deadly):
    ray = MadeUp(seed, room, lambda item: deadly.get(item, 0))
    mine = Crew(ray, ray.hire)
    found = []
    for value in mine.results(range(count), size):
        # Who is done before its turn is not far ahead.
        assert len(ray.done) <= len(found) + 1 + AHEAD * size
        found.append(value)
    assert found == [item**2 for item in range(count)]
    assert Counter(ray.done) == Counter(range(count))
    assert sum(ray.deaths.values()) == sum(n for item, n in deadly.items() if item < count)
    assert list(mine.results([5], size)) == [25]  # those who are left do the next work too
    mine.dismiss()
    assert not ray.alive


def test_workers_stay_for_more_work():
    ray = MadeUp(0, room=3)
    mine = Crew(ray, ray.hire)
    for _ in range(3):
        assert list(mine.results([1, 2, 3, 4], 3)) == [1, 4, 9, 16]
    assert ray.hired == 3


def test_an_error_waits_for_its_turn():
    for seed in range(5):
        mine, found = Crew(ray := MadeUp(seed, room=2), ray.hire), []
        with pytest.raises(DataError, match="-1 is below 0"):
            for value in mine.results([1, 2, -1, 3], 2):
                found.append(value)
        assert found == [1, 4]
    with pytest.raises(RayTaskError) as caught:  # a bug of ours keeps its traceback
        list(Crew(ray := MadeUp(0, room=2), ray.hire).results([-9], 2))
    assert isinstance(caught.value.cause, KeyError)


def test_an_item_that_kills_everyone_is_named():
    ray = MadeUp(0, room=9, fate=lambda item: 99 * (item == 13))
    with pytest.raises(UnsupportedError, match=r"4 workers died at item 2 of 2 \(the node is gone"):
        list(Crew(ray, ray.hire).results([1, 13], 1))
    assert ray.deaths[13] == ATTEMPTS


def test_a_cluster_without_room():
    ray = MadeUp(0, room=0)
    with pytest.raises(UnsupportedError, match=r"within 300 s; the cluster has 3 CPUs, of which 3"):
        list(Crew(ray, ray.hire).results([1], 2))


@pytest.mark.parametrize(("is_ours", "starts"), [(True, 1), (False, ATTEMPTS + 1)])
def test_a_worker_that_cannot_start(monkeypatch, is_ours, starts):
    """What fails when it is made fails again; what dies may have been unlucky."""
    ray = MadeUp(0, room=1)

    def get(reference):
        ray.alive.clear()
        raise RayError("No module named 'pennyweight'")

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(RayError, "actor_init_failed", is_ours)
    with pytest.raises(UnsupportedError, match=r"be started \(No module named 'pennyweight'\);"):
        list(Crew(ray, ray.hire).results([1], 1))
    assert ray.hired == starts and crew.PATIENCE_S > 60
