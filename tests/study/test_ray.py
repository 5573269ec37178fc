"""The engine `ray` on real clusters of this machine: the same records as one process, whoever dies.

Slow: every worker is a process that imports torch and transformers.
"""

import os
from pathlib import Path

import pytest

from pennyweight.core import DataError, UnsupportedError
from pennyweight.model import crew
from pennyweight.model.crew import Crew
from pennyweight.model.engine import Local, make_engine
from pennyweight.pipeline.profile import Sampling, profile
from pennyweight.pipeline.quantize import quantize
from pennyweight.records import Store
from pennyweight.study.calibration.design import parse_study as parse_calibration
from pennyweight.study.calibration.run import run_study
from pennyweight.study.scaling.design import parse_study
from pennyweight.study.scaling.run import run_scaling
from tests.end_to_end.models import contents, make_recipe
from tests.engines import said
from tests.study.benches import request as asked_of
from tests.study.test_engine import calibration_study, sensed

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="needs the extra `ray`")


@pytest.fixture
def engine():
    """engine(workers): on a cluster of its own, which ends with the test."""
    made = []

    def make(workers: int):
        assert not ray.is_initialized(), "what another test left is not what is tested"
        made.append(make_engine("ray", workers=workers))
        return made[-1]

    yield make
    for each in made:
        each.close()
    assert not ray.is_initialized()


@pytest.fixture
def study(tiny_llama, token_file):
    """A scaling study of one random model of 2 blocks: 28 mixes."""
    text = {"data": [str(token_file)], "max_tokens": 64, "context": 32}
    grid = {"formats": ["MXINT4"], "granularities": ["matmul", "layer"], "ratios": [0.5, 1.0]}
    return parse_study({
        "models": [str(tiny_llama)], "trials": 2, "evaluate": text, "sense": text, "grid": [grid],
    })  # fmt: skip


@pytest.fixture
def by_one(study, tmp_path):
    """What one process says."""
    store = Store.open(tmp_path / "one.sqlite")
    run_scaling(study, store, tmp_path / "one", threads=1)
    return said(store)


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_make_the_records_of_one_process(study, by_one, tmp_path, engine, workers):
    store = Store.open(tmp_path / "ray.sqlite")
    run_scaling(study, store, tmp_path / "work", engine=engine(workers), threads=1)
    assert said(store) == by_one


class Placed:
    """A function whose results say which node they are from."""

    def __init__(self, function) -> None:
        self.function = function

    def __call__(self, item):
        return ray.get_runtime_context().get_node_id(), self.function(item)


class Killing:
    """The engine of a cluster that loses a node. It is one that has just handed in a result, so
    that it is at another item, and not before so many results are there."""

    is_local = False

    def __init__(self, engine, cluster, after: int) -> None:
        self.engine, self.cluster, self.after = engine, cluster, after
        self.placed, self.count = Placed(None), 0

    def map(self, function, items):
        if self.placed.function is not function:
            self.placed = Placed(function)
        nodes = {node.node_id: node for node in self.cluster.worker_nodes}
        for node, result in self.engine.map(self.placed, items):
            self.count += 1
            yield result
            if self.count >= self.after and node in nodes and len(self.cluster.worker_nodes) == 2:
                self.cluster.remove_node(nodes[node], False)

    def close(self) -> None:
        self.engine.close()


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_node_that_dies_in_the_middle(study, by_one, tmp_path, cluster, monkeypatch):
    lost, replace = [], Crew._replace

    def noted(self, worker, number, error):
        lost.append(number)
        return replace(self, worker, number, error)

    monkeypatch.setattr(Crew, "_replace", noted)
    store = Store.open(tmp_path / "ray.sqlite")
    engine = Killing(make_engine("ray", address=cluster.address, workers=3), cluster, after=4)
    run_scaling(study, store, tmp_path / "work", engine=engine, threads=1)
    engine.close()
    assert len(cluster.worker_nodes) == 1
    assert [number for number in lost if number is not None]  # it died at an item
    assert said(store) == by_one  # in the same order, and none twice


class Fragile:
    """item -> its square, or of 100 the folder. Below 0 it is the user's error; 13 kills the worker
    that is at it, 7 the first one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def __call__(self, item: int) -> int | str:
        if item < 0:
            raise DataError(f"{item} is below 0")
        if item == 13:
            os._exit(1)
        if item == 7 and not (mark := self.folder / "seven").exists():
            mark.touch()
            os._exit(1)
        self.count += 1
        return os.getcwd() if item == 100 else item * item


def test_what_an_engine_promises(tmp_path, engine, monkeypatch):
    made, fragile = engine(2), Fragile(tmp_path)
    assert list(made.map(fragile, range(9))) == [item * item for item in range(9)]
    assert (tmp_path / "seven").exists() and fragile.count == 0  # nothing was done here
    made.workers, seen = 1, []
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="-1 is below 0"):
        for result in made.map(fragile, [1, 100, -1, 3]):
            seen.append(result)
    assert seen == [1, str(tmp_path)]  # what comes before the error is handed back first
    monkeypatch.setattr(crew, "ATTEMPTS", 2)
    with pytest.raises(UnsupportedError, match=r"2 workers died at item 1 of 1 .* is kept"):
        list(made.map(fragile, [13]))


def test_a_table_and_cells_and_a_profile_and_files(tiny_llama, token_file, tmp_path, engine):
    made = engine(2)
    rule = {"scheme": "W4A16_g32", "quantizer": "gptq"}
    recipe = make_recipe(tiny_llama, token_file, rule)
    paths = [
        quantize(recipe, tmp_path / name, engine=by, threads=1).path
        for name, by in (("files", Local()), ("elsewhere", made))
    ]
    assert contents(paths[0]) == contents(paths[1])
    asked = asked_of(tiny_llama, token_file, schemes=("W3A16_g32", "W8A8"), granularity="layer")
    assert sensed(tmp_path / "there", asked, made) == sensed(tmp_path / "here", asked)

    plan = parse_calibration(calibration_study(tiny_llama, token_file))
    stores = [Store.open(tmp_path / f"{name}.sqlite") for name in ("here", "there")]
    for store, by in zip(stores, (Local(), made), strict=True):
        assert run_study(plan, store, engine=by, threads=1) == 2
    assert said(stores[0]) == said(stores[1]) != []

    sampling, sets = Sampling(samples=6, tokens=8), [str(token_file), "random-tokens"]
    found = [
        profile(str(tiny_llama), sets, sampling, engine=by, threads=1) for by in (Local(), made)
    ]
    assert found[0].to_dict() == found[1].to_dict()
