"""What a user sees: one line on stderr, exit code 1, and nothing under the name of OUT."""

import subprocess
import sys

import pytest

from pennyweight.cli.main import main
from tests.bad_input.helpers import change_config, change_tensors, copy

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments): the exit code, and the lines on stderr."""

    def run(*arguments) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["pennyweight", *map(str, arguments)])
        monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return stopped.value.code, captured.err.strip().splitlines()

    return run


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--scheme", "W4A16_g100"], "in_features 64 is not a multiple of group_size 100"),
        (["--scheme", "W4A16_g23x"], "rule.0.scheme: unknown scheme 'W4A16_g23x'; did you mean"),
        (["--quantizer", "gptqq"], "unknown quantizer 'gptqq'; did you mean 'gptq'?"),
        (["--set", "calibrate.sample=3"], "unknown key 'sample'; did you mean 'samples'?"),
        (["--set", "rule.0.options.dampp=3"], "unknown key 'dampp'; did you mean 'damp'?"),
        (["--samples", "0"], "calibrate.samples: expected 1 to"),
        (["--recipe", "none.toml"], "none.toml: no such recipe"),
        (["--calibrate", "none.json"], "none.json: no such file"),
        (["--calibrate", "none.txt"], "holds no tokenizer; give text as token ids"),
        (["--device", "cuda"], "only cpu is supported"),
    ],
)
def test_options(run, tiny_llama, tmp_path, options, expected):
    given = ["-o", tmp_path / "out", "--scheme", "W4A16_g32", *options]
    code, lines = run("quantize", tiny_llama, *given)
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert expected in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_in_the_place_of_the_model(run, tmp_path):
    code, lines = run("quantize", "mixed.toml", "-o", tmp_path / "out")
    assert (code, lines) == (
        1, ["error: MODEL: 'mixed.toml' is a recipe; say --recipe mixed.toml"]
    )  # fmt: skip


def test_plans(run, tiny_llama, tmp_path):
    code, lines = run("quantize", tiny_llama, "-o", tmp_path / "out", "--plan", "none.json")
    assert (code, len(lines)) == (1, 1)
    assert "none.json: not a plan of this version" in lines[0]
    options = ["--plan", "none.json", "--scheme", "W8A8"]
    code, lines = run("quantize", tiny_llama, "-o", tmp_path / "out", *options)
    assert (code, lines) == (
        1, ["error: --plan: a plan is complete; edit the file instead of giving other options"]
    )  # fmt: skip


@pytest.mark.parametrize("text", ["rule = 3", "rule = ['a']", "calibrate = 'a'", "rule = {a = 1}"])
def test_options_over_a_recipe_of_the_wrong_kind(run, tiny_llama, tmp_path, text):
    (file := tmp_path / "r.toml").write_text(text)
    options = ["--recipe", file, "--scheme", "W8A8", "--samples", "3"]
    code, lines = run("quantize", tiny_llama, "-o", tmp_path / "out", *options)
    assert (code, len(lines)) == (1, 1)
    assert "r.toml: " in lines[0]


def test_a_broken_weight(run, tiny_llama, tmp_path, token_file):
    model = copy(tiny_llama, tmp_path / "model")
    change_tensors(model, lambda tensors: tensors[DOWN][3, :5].fill_(float("nan")))
    options = ["-o", tmp_path / "out", "--scheme", "W4A16_g32", "--calibrate", token_file]
    code, lines = run("quantize", model, *options, "--tokens", "16", "--quiet")
    assert (code, len(lines)) == (1, 1)
    assert f"error: {DOWN}: 5 of 6144 values are NaN or Inf in model.safetensors" in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["quantize", "check", "eval"])
def test_every_verb_that_reads_a_model(run, tiny_llama, tmp_path, token_file, verb):
    model = copy(tiny_llama, tmp_path / "model")
    change_config(model, model_type="perceptron\n[red]\x1b[31m")
    options = {
        "quantize": ["-o", tmp_path / "out", "--calibrate", token_file, "--scheme", "W4A16_g32"],
        "check": ["--calibrate", token_file, "--scheme", "W4A16_g32"],
        "eval": ["--data", token_file],
    }
    code, lines = run(verb, model, *options[verb])
    assert (code, len(lines)) == (1, 1)
    assert "transformers cannot build a decoder from config.json" in lines[0]
    assert "[red]" in lines[0]
    assert "\x1b" not in lines[0]


def test_a_process_of_its_own(tmp_path):
    """As a shell sees it, and before anything heavy is imported."""
    command = [sys.executable, "-m", "pennyweight", "quantize", "no/such/dir", "-o", "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: no/such/dir: no such model directory, and not a Hub id (owner/name)"
    ]
    assert list(tmp_path.iterdir()) == []
