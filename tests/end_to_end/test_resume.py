"""Killed at any moment, the same command goes on, and the bytes are those of an undisturbed run.

Also: neither threads, nor the hash seed, nor the way the plan was given changes a byte.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pennyweight.core import CheckpointError
from pennyweight.pipeline.quantize import quantize
from tests.end_to_end.killed import run_killed
from tests.end_to_end.models import build, contents, make_recipe, save, save_tokens

BLOCKS = 4
TRANSFORMS = [{"name": "smoothquant"}]
RULES = [
    {"match": "*.down_proj.weight", "scheme": "W8A8_static", "quantizer": "gptq"},
    {"match": "*", "scheme": "W4A16_g32_asym", "quantizer": "gptq"},
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """GPTQ, a transform and a static activation scale: everything that a block hands on."""
    folder = tmp_path_factory.mktemp("resume")
    model = save(build("llama", num_hidden_layers=BLOCKS), folder / "model", shard="100KB")
    return make_recipe(model, save_tokens(folder), *RULES, transform=TRANSFORMS)


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory) -> dict[str, bytes]:
    return contents(quantize(recipe, tmp_path_factory.mktemp("whole") / "out", threads=2).path)


def assert_finishes(recipe, output: Path, undisturbed: dict[str, bytes]) -> None:
    quantize(recipe, output, threads=2)
    found = contents(output)
    assert {name for name in undisturbed if found.get(name) != undisturbed[name]} == set()
    assert set(found) == set(undisturbed)
    assert [path.name for path in output.parent.iterdir()] == [output.name]  # no OUT.work is left


# In place are put: the plan, a file a block, weights, config, and the records about the result;
# the result itself comes last. More than there are, so that the end is in the list too.
FILES = BLOCKS + 8


@pytest.mark.parametrize(
    ("moment", "count"),
    [
        pytest.param("after", count, marks=() if count % 3 == 1 else pytest.mark.slow)
        for count in range(1, FILES)
    ]
    + [("before", count) for count in (1, 2, BLOCKS + 2, FILES - 1)],
)
def test_killed_around_any_file(moment, count, recipe, undisturbed, tmp_path):
    output = tmp_path / "out"
    killed = run_killed(recipe, output, moment, count)
    if not killed:  # it was done before that many files were put in place
        assert contents(output) == undisturbed
        with pytest.raises(CheckpointError, match="holds the result of this very plan"):
            quantize(recipe, output)
        return
    # Also after the rename that puts the result in place: what is left then is to clean up.
    assert_finishes(recipe, output, undisturbed)


def test_the_moments_above_reach_the_end(recipe, tmp_path):
    assert not run_killed(recipe, tmp_path / "out", "before", FILES + 1)


@pytest.mark.parametrize(
    "count", [1, 60, *(pytest.param(count, marks=pytest.mark.slow) for count in (3, 30, 100, 140))]
)
def test_killed_within_a_file(count, recipe, undisturbed, tmp_path):
    assert run_killed(recipe, tmp_path / "out", "within", count)
    assert_finishes(recipe, tmp_path / "out", undisturbed)


def test_killed_again_and_again(recipe, undisturbed, tmp_path):
    """Each time when it has finished one more block."""
    for _ in range(BLOCKS - 1):
        assert run_killed(recipe, tmp_path / "out", "after", 2)
    assert_finishes(recipe, tmp_path / "out", undisturbed)


def test_a_block_that_was_lost_is_made_again(recipe, undisturbed, tmp_path):
    assert run_killed(recipe, tmp_path / "out", "after", BLOCKS + 1)
    (tmp_path / "out.work" / "block_00001.safetensors").unlink()
    assert_finishes(recipe, tmp_path / "out", undisturbed)


def test_a_block_file_that_was_cut_is_an_error_that_names_it(recipe, tmp_path):
    assert run_killed(recipe, tmp_path / "out", "after", 3)
    file = tmp_path / "out.work" / "block_00001.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"block_00001\.safetensors"):
        quantize(recipe, tmp_path / "out")


def test_another_recipe_does_not_go_on_with_these_blocks(recipe, tmp_path):
    assert run_killed(recipe, tmp_path / "out", "after", 3)
    model, data = Path(recipe.model), Path(recipe.calibrate.data[0])
    other = make_recipe(model, data, RULES[0], RULES[1] | {"options": {"damp": 0.02}})
    with pytest.raises(CheckpointError, match=r"holds blocks of another run.*damp"):
        quantize(other, tmp_path / "out")


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_no_byte(threads, recipe, undisturbed, tmp_path):
    assert contents(quantize(recipe, tmp_path / "out", threads=threads).path) == undisturbed


def test_the_saved_plan_gives_the_same_bytes(recipe, undisturbed, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_bytes(undisturbed["plan.json"])
    assert contents(quantize(plan, tmp_path / "out").path) == undisturbed


@pytest.mark.parametrize(
    "quantizer",
    ["hqq", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rtn", "mse_clip"))],
)
def test_a_run_without_calibration_is_killed_and_goes_on(quantizer, recipe, tmp_path):
    model, data = Path(recipe.model), Path(recipe.calibrate.data[0])
    plain = make_recipe(model, data, {"scheme": "W3A16_g32_asym", "quantizer": quantizer})
    whole = contents(quantize(plain, tmp_path / "whole" / "out").path)
    assert run_killed(plain, tmp_path / "part" / "out", "after", 3)
    assert_finishes(plain, tmp_path / "part" / "out", whole)


def command(recipe, output: Path) -> list[str]:
    return [
        sys.executable, "-m", "pennyweight", "quantize", recipe.model, "-o", str(output), "--quiet",
        "--calibrate", recipe.calibrate.data[0], "--samples", "8", "--tokens", "24",
        "--scheme", "W4A16_g32",
    ]  # fmt: skip


@pytest.mark.slow
def test_another_hash_seed_and_other_cores_give_the_same_bytes(recipe, tmp_path):
    """PYTHONHASHSEED changes the order of sets; OMP_NUM_THREADS how torch cuts its products."""
    found = []
    for number in ("1", "2"):
        output = tmp_path / number / "out"
        settings = {"PYTHONHASHSEED": number, "OMP_NUM_THREADS": number}
        options = ["--threads", number]
        subprocess.run(command(recipe, output) + options, env=os.environ | settings, check=True)
        found.append(contents(output))
    assert found[0] == found[1]


@pytest.mark.slow
def test_the_command_itself_is_killed_at_a_random_time(recipe, tmp_path):
    subprocess.run(command(recipe, tmp_path / "whole"), check=True)
    killed, delay = tmp_path / "killed", 0.0
    while not killed.exists():
        process = subprocess.Popen(command(recipe, killed))
        file = tmp_path / "killed.work" / "block_00000.safetensors"
        while process.poll() is None and not file.exists():
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        delay = 2 * delay + 0.2
    shutil.rmtree(tmp_path / "killed.work", ignore_errors=True)
    assert contents(killed) == contents(tmp_path / "whole")
