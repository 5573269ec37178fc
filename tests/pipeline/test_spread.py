"""Samples that pass through the blocks in other processes: the same files, also after a stop."""

import pytest

from pennyweight.core import CheckpointError, Progress
from pennyweight.pipeline.job import prepare
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.spread import FOLDER, Carry, Leg, Places
from pennyweight.pipeline.workdir import WorkDir
from tests.end_to_end.models import build, contents, make_recipe, save, save_tokens
from tests.engines import Sent

GPTQ = {"scheme": "W4A16_g32_asym", "quantizer": "gptq"}
STATIC = {"match": "*.o_proj.weight", "scheme": "W8A8_static", "quantizer": "gptq"}


class Forgetful(Sent):
    """Every item comes to a process that has seen no other."""

    def map(self, function, items):
        for item in items:
            yield from super().map(function, [item])


class Stopping(Sent):
    """Dies after so many items."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def map(self, function, items):
        for found in super().map(function, items):
            if self.count > self.after:
                raise KeyboardInterrupt
            yield found


class Heard(Progress):
    def __init__(self) -> None:
        self.told: list[str] = []

    def say(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture(scope="module", params=["llama", "mixtral"])
def recipe(request, tmp_path_factory):
    """Also with a head, whose input is what comes out of the last block."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save(build(request.param, num_hidden_layers=3), folder / "model")
    rules = [{"match": "lm_head.weight", "scheme": "W8A16_g32", "quantizer": "gptq"}, STATIC, GPTQ]
    return make_recipe(model, save_tokens(folder), *rules)


@pytest.fixture(scope="module")
def here(recipe, tmp_path_factory):
    return contents(quantize(recipe, tmp_path_factory.mktemp("here") / "out", threads=2).path)


@pytest.mark.parametrize("engine", [Sent, pytest.param(Forgetful, marks=pytest.mark.slow)])
def test_files_are_the_same_whoever_passed_the_samples(recipe, here, tmp_path, engine):
    made = engine()
    assert contents(quantize(recipe, tmp_path / "out", engine=made, threads=1).path) == here
    assert made.count > 3 * 2  # two shards or more
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


SLOW = [pytest.param(after, marks=pytest.mark.slow) for after in (1, 8, 21)]


@pytest.mark.parametrize("after", [13, *SLOW])
def test_an_interrupted_run_goes_on_where_all_shards_were(recipe, here, tmp_path, after):
    with pytest.raises(KeyboardInterrupt):
        quantize(recipe, tmp_path / "out", engine=Stopping(after), threads=1)
    engine = Sent()
    assert contents(quantize(recipe, tmp_path / "out", engine=engine, threads=1).path) == here


@pytest.mark.slow
def test_what_is_behind_is_not_walked_again(recipe, tmp_path):
    whole = Sent()
    quantize(recipe, tmp_path / "whole", engine=whole, threads=1)
    with pytest.raises(KeyboardInterrupt):
        quantize(recipe, tmp_path / "out", engine=Stopping(whole.count - 1), threads=1)
    rest = Sent()
    quantize(recipe, tmp_path / "out", engine=rest, threads=1)
    assert rest.count < whole.count / 2


def test_the_same_leg_gives_the_same_file_again(recipe, tmp_path):
    """Also in a process that remembers the shard."""
    job = prepare(recipe)
    work = WorkDir.open(tmp_path / "out", job.plan)
    carry = Carry(path=job.path, work=work, rows=job.calibration.ids, threads=1)
    carry.places.folder.mkdir()
    found = []
    for _ in range(2):
        carry(Leg(shard=0, block=0))
        found.append(carry.places.states(1, 0).read_bytes())
    assert found[0] == found[1]


def test_a_work_directory_that_is_not_seen_is_named(recipe, tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir()
    with pytest.raises(CheckpointError, match="under the same path"):
        Places(folder=folder).read(Places(folder=folder).states(1, 0))


def test_what_looks_at_all_samples_keeps_them_here(tmp_path):
    model = save(build("llama"), tmp_path / "model")
    rows = save_tokens(tmp_path)
    recipe = make_recipe(model, rows, GPTQ, transform=[{"name": "smoothquant"}])
    engine, heard = Sent(), Heard()
    quantize(recipe, tmp_path / "out", engine=engine, threads=1, progress=heard)
    assert engine.count == 0
    assert any("smoothquant looks at all samples of a block at once" in line for line in heard.told)
