"""The search with a memory: a storage keeps the trials, and changes no result."""

import json
import multiprocessing
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from pennyweight.allocate import ALLOCATORS
from pennyweight.allocate.base import Option, Problem, Unit
from pennyweight.allocate.tpe import TPE, _finished, _name, _optuna, _study
from pennyweight.cli.main import app
from pennyweight.core import CheckpointError, RecipeError
from pennyweight.pipeline.recipe import make_from


def problem(units: int = 5, **changes) -> Problem:
    """Units whose 4 bits lose more the later they are; a budget for about half of them in 8."""
    made = tuple(
        Unit(
            name=f"layers.{index}",
            options=(
                Option(scheme="W4", loss=1.0 + index, cost=4.0),
                Option(scheme="W8", loss=0.1, cost=8.0),
            ),
        )
        for index in range(units)
    )
    given = {"minimise": "loss", "budget": 4.0 * units + 4.0 * (units // 2)}
    return Problem(units=made, **given | changes)


def kept(storage, asked: Problem, seed: int = 0) -> list[dict]:
    optuna = _optuna()
    found = _finished(optuna, _study(optuna, str(storage), asked, seed))
    return [trial.params for trial in sorted(found, key=lambda trial: trial.number)]


@pytest.mark.parametrize(
    ("kind", "stop", "end"),
    [("journal", 12, 25), pytest.param("sqlite", 2, 4, marks=pytest.mark.slow)],
)
def test_a_search_that_goes_on_is_one_that_was_not_stopped(tmp_path, kind, stop, end):
    url = {"journal": str(tmp_path / "tpe.journal"), "sqlite": f"sqlite:///{tmp_path}/tpe.db"}[kind]
    asked = problem()
    first = TPE(trials=stop, storage=url)(asked)
    assert len(first.trials) <= len(kept(url, asked)) == stop
    second = TPE(trials=end, storage=url)(asked)
    assert second == TPE(trials=end)(asked)  # nor does it matter where trials are kept
    assert second.trials[: len(first.trials)] == first.trials
    assert TPE(trials=end, storage=url)(asked) == second
    assert len(kept(url, asked)) == end  # nothing was left to do


def test_a_second_problem_or_seed_is_another_search_in_the_same_file(tmp_path):
    storage = str(tmp_path / "tpe.journal")
    TPE(trials=5, storage=storage)(problem())
    for asked, seed in [(problem(budget=36.0), 0), (problem(units=4), 0), (problem(), 1)]:
        assert TPE(trials=5, storage=storage)(asked, seed) == TPE(trials=5)(asked, seed)
        assert len(kept(storage, asked, seed)) == 5
    measured = replace(problem(), measure=lambda schemes: 0.0)
    assert _name(measured, 0) != _name(problem(), 0)


def test_what_another_process_measured_is_not_measured_again(tmp_path):
    """Each takes the losses from the storage: here the second one's measure would be an error."""
    storage = str(tmp_path / "tpe.journal")
    asked = problem(measure=lambda schemes: 3.25 if schemes["layers.4"] == "W8" else 9.0)
    found = TPE(trials=10, storage=storage)(asked)

    def fails(schemes):
        raise AssertionError(schemes)

    assert found.loss == 3.25
    assert TPE(trials=10, storage=storage)(replace(asked, measure=fails)) == found


def search(storage: str) -> None:
    TPE(trials=30, storage=storage)(problem(units=8))


@pytest.mark.slow
def test_processes_share_a_search(tmp_path):
    """No two of them draw the same: all numbers are there once, and only the first is repeated."""
    storage, context = str(tmp_path / "tpe.journal"), multiprocessing.get_context("spawn")
    processes = [context.Process(target=search, args=(storage,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    params = kept(storage, problem(units=8))
    assert 30 <= len(params) <= 30 + 2 + 2  # those under way when the last one ended
    alone = TPE(trials=30)(problem(units=8))
    shared = TPE(trials=30, storage=storage)(problem(units=8))
    assert shared.loss <= 1.5 * alone.loss


def test_a_storage_that_cannot_be_used(tmp_path):
    (tmp_path / "poem.txt").write_text("Roses are red\nviolets are blue\n")
    for storage in (
        tmp_path / "nowhere" / "tpe.journal", tmp_path / "poem.txt", "nosuchdb://here/there",
        f"sqlite:///{tmp_path}/nowhere/tpe.db",
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=r"tpe: storage .*: cannot be used .* a new file"):
            TPE(trials=2, storage=str(storage))(problem())
    assert (tmp_path / "poem.txt").read_text().startswith("Roses")


def test_a_trial_whose_loss_is_no_number_ends_without_a_value():
    asked = problem(measure=lambda schemes: float("nan") if schemes["layers.0"] == "W4" else 1.0)
    with pytest.warns(UserWarning, match="nan"):
        found = TPE(trials=20)(asked)
    assert found.loss == 1.0 and found.schemes["layers.0"] == "W8"


def test_a_recipe_names_it(tmp_path):
    made = make_from(ALLOCATORS, "tpe", {"storage": "tpe.journal", "trials": 3}, "plan")
    assert made == TPE(storage="tpe.journal", trials=3)
    with pytest.raises(RecipeError, match="unknown key 'store'"):
        make_from(ALLOCATORS, "tpe", {"store": "tpe.journal"}, "plan")


@pytest.mark.slow
def test_a_plan_by_a_search_that_is_kept(tiny_llama, token_file, tmp_path):
    journal = tmp_path / "tpe.journal"
    (fresh := tmp_path / "fresh.json").write_text(json.dumps([[7 * i, 3, i] for i in range(18)]))
    command = [
        "plan", tiny_llama, "--budget", "bits<=8", "--schemes", "W4A16_g32,W8A16_g32",
        "--quantizer", "rtn", "--sense-data", token_file, "--data", fresh, "--rounds", 1,
        "--granularity", "layer", "--any-engine", "--allocator", "tpe", "--set",
        "allocator.trials=6", "--set", f"allocator.storage={journal}", "--threads", 1, "-q",
    ]  # fmt: skip
    sizes = []
    for name in ("first.toml", "second.toml"):
        found = CliRunner().invoke(app, [*map(str, command), "-o", str(tmp_path / name)])
        assert found.exit_code == 0, found.output
        sizes.append(journal.read_bytes().count(b'"loss"'))
    assert sizes[0] == sizes[1] > 0  # the second plan had nothing to try
    with pytest.raises(RecipeError, match=r"or allocator.KEY, found alocator"):
        app([*map(str, command), "--set", "alocator.trials=6", "-o", "x"], standalone_mode=False)
