import json

import pytest
import typer
from typer.testing import CliRunner

from pennyweight.cli.eval import eval_command
from pennyweight.core import PennyweightError
from tests.tiny_llama import save_tiny_llama

app = typer.Typer()
app.command()(eval_command)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    model = save_tiny_llama(folder / "model")
    (folder / "a.txt").write_text("one line\nand another\n" * 10)
    return [str(model), "--data", str(folder / "a.txt"), "--split-at", r"\n"]


def run(*arguments):
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_json_is_the_whole_output(arguments):
    found = json.loads(run(*arguments, "--json", "--context", "8", "--bos", "never"))
    assert found["perplexity"]["low"] < found["perplexity"]["value"] < found["perplexity"]["high"]
    assert found["settings"]["context"] == 8
    assert found["bos"] == "never"
    assert found["comparison"] is None


def test_the_table_states_the_conditions(arguments):
    shown = run(*arguments, "--against", arguments[0], "--stride", "16", "--seed", "5")
    for expected in [
        "95% interval",
        "mean KL divergence, nats a token",
        "0.000000 to 0.000000",
        "100.00 to 100.00",
        "a.txt, cut at '\\n'",
        "scored: 190 tokens, 190 bytes, 20 documents, 20 windows",
        "context 64, stride 16; BOS auto: the tokenizer adds '<s>'",
        "paired bootstrap over documents, 2000 resamples, seed 5",
    ]:
        assert expected in shown


def test_one_window_has_no_interval(arguments):
    shown = run(*arguments, "--max-tokens", "5", "--document-tokens", "9")
    assert "unknown: one window" in shown
    assert "the first 9 tokens of each document" in shown


def test_token_ids_have_no_bits_per_byte(arguments, tmp_path):
    (path := tmp_path / "a.json").write_text("[[5, 6, 7, 8], [9, 10, 11]]")
    shown = run(arguments[0], "--data", str(path))
    assert "perplexity" in shown
    assert "bits per byte" not in shown


def test_formats_of_attention_are_stated(arguments):
    options = ["--kv-cache", "int8", "--attention", "pv:fp8", "--max-tokens", "40"]
    shown = run(*arguments, *options)
    assert "rounded in the model: KV cache int8 (10 bits a number); operands of PV fp8" in shown
    assert json.loads(run(*arguments, *options, "--json"))["attention"]["pv"] == "fp8"
    both = json.loads(run(*arguments, "--max-tokens", "40", "--json", "--attention", "int8"))
    assert (both["attention"]["qk"], both["attention"]["pv"]) == ("int8", "int8")
    assert "rounded in the model" not in run(*arguments, "--max-tokens", "40")


def test_an_unknown_product_is_wrong_usage(arguments):
    result = CliRunner().invoke(app, [*arguments, "--attention", "kv:int8"])
    assert result.exit_code == 2
    assert "'kv' is no product of attention" in result.output


def test_errors_are_for_the_program_to_show(arguments):
    with pytest.raises(PennyweightError, match="context is 1"):
        run(*arguments, "--context", "1")
