"""The output and work directories: nothing is overwritten, nothing that was finished is lost."""

import errno
import os
import shutil
import subprocess
from dataclasses import replace

import pytest

from pennyweight.core import CheckpointError, NumericalError, RecipeError
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.stage import Stage
from tests.bad_input.helpers import change_config, change_tensors, contents, copy, recipe, refused


@pytest.fixture(scope="module")
def undisturbed(tiny_llama, token_file, tmp_path_factory):
    """The files of a run that nothing went wrong in."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    quantize(recipe(tiny_llama, token_file), out)
    return contents(out)


@pytest.fixture
def interrupted(tiny_llama, token_file, tmp_path, monkeypatch):
    """An output whose work directory holds the first block, and the recipe that made it."""
    out, asked = tmp_path / "out", recipe(tiny_llama, token_file)
    with monkeypatch.context() as patch:
        full_after(2, patch)  # the plan and block 0
        refused(asked, out, CheckpointError, "block_00001", "the disk is full")
    assert sorted(contents(tmp_path / "out.work")) == ["block_00000.safetensors", "plan.json"]
    return out, asked


def full_after(count: int, monkeypatch) -> None:
    """From the file number `count` on, no file reaches the disk."""
    files, fsync = iter(range(2 * count)), os.fsync  # of each file, and of its folder

    def full(descriptor: int) -> None:
        if next(files, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 7])
def test_a_disk_that_is_full_at_any_file(
    tiny_llama, token_file, tmp_path, monkeypatch, undisturbed, count
):
    """The plan, two blocks, then weights, config, proof, plan and card of the result."""
    out, asked = tmp_path / "out", recipe(tiny_llama, token_file)
    with monkeypatch.context() as patch:
        full_after(count, patch)
        found = refused(asked, out, CheckpointError, "the disk is full", "repeat the command")
    assert str(tmp_path / "out.work") in found
    assert not [name for name in contents(tmp_path) if name.endswith(".partial")]
    quantize(asked, out)
    assert contents(out) == undisturbed
    assert not (tmp_path / "out.work").exists()


def test_a_disk_that_is_really_full(tiny_llama, token_file, tmp_path, undisturbed):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(disk)]
    try:
        allowed = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(450_000))
        asked = recipe(tiny_llama, token_file)
        refused(asked, disk / "out", CheckpointError, "the disk is full")
        before = contents(disk / "out.work")
        assert "plan.json" in before
        ballast.unlink()
        quantize(asked, disk / "out")
        assert contents(disk / "out") == undisturbed
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_output_that_exists(tiny_llama, tmp_path):
    out, asked = tmp_path / "out", recipe(tiny_llama)
    out.mkdir()
    (out / "precious").write_text("of somebody")
    (out / "plan.json").write_bytes(b"\xff not a plan")
    with pytest.raises(CheckpointError, match="out: exists; choose another output directory"):
        quantize(asked, out)
    assert sorted(contents(out)) == ["plan.json", "precious"]
    assert not (tmp_path / "out.work").exists()
    (tmp_path / "file").write_text("")
    for name in ("file", "file/out"):
        with pytest.raises(CheckpointError, match=r"exists; choose|Not a directory"):
            quantize(asked, tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="link: exists"):
        quantize(asked, tmp_path / "link")


def test_the_same_result_again(tiny_llama, tmp_path):
    out, asked = tmp_path / "out", recipe(tiny_llama)
    quantize(asked, out)
    before = contents(out)
    with pytest.raises(CheckpointError, match="holds the result of this very plan: nothing to do"):
        quantize(asked, out)
    assert contents(out) == before


def test_a_work_directory_of_somebody_else(tiny_llama, tmp_path):
    """It would be removed in the end."""
    work = tmp_path / "out.work"
    work.mkdir()
    (work / "thesis.txt").write_text("years")
    refused(recipe(tiny_llama), tmp_path / "out", CheckpointError, "thesis.txt", "another output")
    assert contents(work) == {"thesis.txt": b"years"}
    shutil.rmtree(work)
    work.write_text("a file")
    refused(recipe(tiny_llama), tmp_path / "out", CheckpointError, "out.work: cannot be written")


def test_a_work_directory_of_another_run(interrupted, tiny_llama, tmp_path, token_file):
    out, asked = interrupted
    before = contents(tmp_path / "out.work")
    other_tokens = tmp_path / "other.json"
    other_tokens.write_text("[[1, 2, 3, 4, 5, 6, 7, 8, 9]]")
    for changed, *expected in [
        (recipe(tiny_llama, token_file, scheme="W3A16_g32"), "tasks", "W4A16_g32", "W3A16_g32"),
        (recipe(tiny_llama, token_file, options={"damp": 0.5}), "tasks", "damp", "0.5"),
        (replace(asked, seed=7), "seed", "found 0", "now 7"),
        (recipe(tiny_llama, other_tokens), "calibrate", "tokens.json", "other.json"),
    ]:
        found = refused(changed, out, CheckpointError, "out.work", "of another run", *expected)
        assert "Repeat the first command to finish that run, or delete the directory" in found
    assert contents(tmp_path / "out.work") == before


def test_a_work_directory_of_other_weights_or_texts(tiny_llama, token_file, tmp_path, monkeypatch):
    model, tokens = copy(tiny_llama, tmp_path / "model"), tmp_path / "tokens.json"
    shutil.copy(token_file, tokens)
    out, asked = tmp_path / "out", recipe(model, tokens)
    with monkeypatch.context() as patch:
        full_after(2, patch)
        refused(asked, out, CheckpointError, "the disk is full")
    tokens.write_text(token_file.read_text().replace("[[", "[[1, ", 1))
    refused(asked, out, CheckpointError, "out.work", "calibration_digest differs")
    shutil.copy(token_file, tokens)
    change_tensors(model, lambda tensors: tensors["model.norm.weight"].mul_(2))
    refused(asked, out, CheckpointError, "out.work", "fingerprint differs")
    change_tensors(model, lambda tensors: tensors["model.norm.weight"].div_(2))
    change_config(model, rms_norm_eps=1e-3)
    refused(asked, out, CheckpointError, "out.work", "fingerprint differs")


@pytest.mark.parametrize("damage", ["truncated", "other plan", "no metadata"])
def test_a_damaged_block_file(interrupted, tiny_llama, tmp_path, undisturbed, damage):
    out, asked = interrupted
    block = tmp_path / "out.work" / "block_00000.safetensors"
    if damage == "truncated":
        block.write_bytes(block.read_bytes()[:-100])
    elif damage == "no metadata":
        block.write_bytes((tiny_llama / "model.safetensors").read_bytes())
    else:
        content = bytearray(block.read_bytes())
        start = content.index(b'"plan":"') + 8
        content[start : start + 8] = b"00000000"
        block.write_bytes(content)
    found = refused(asked, out, CheckpointError, "block_00000.safetensors")
    assert "delete" in found.lower()
    block.unlink()
    quantize(asked, out)
    assert contents(out) == undisturbed


def test_a_damaged_plan_file(interrupted, tmp_path):
    out, asked = interrupted
    (tmp_path / "out.work" / "plan.json").write_text("{")
    refused(asked, out, RecipeError, "out.work/plan.json", "not a plan of this version")


def test_an_error_in_a_later_block_keeps_the_earlier_ones(
    tiny_llama, token_file, tmp_path, monkeypatch, undisturbed
):
    out, asked, solve = tmp_path / "out", recipe(tiny_llama, token_file), Stage.quantize

    def fail(stage, groups, samples):
        if stage.block.index == 1:
            raise NumericalError("a fault in the middle")
        return solve(stage, groups, samples)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "quantize", fail)
        refused(asked, out, NumericalError, "a fault in the middle")
    assert (tmp_path / "out.work" / "block_00000.safetensors").is_file()
    quantize(asked, out)
    assert contents(out) == undisturbed
