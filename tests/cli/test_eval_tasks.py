import json

import pytest
import typer
from typer.testing import CliRunner

from pennyweight.cli.eval import eval_command
from pennyweight.cli.records import records_command
from tests.tiny_llama import save_tiny_llama

app = typer.Typer()
app.command("eval")(eval_command)
app.command("records")(records_command)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    pairs = [{"sentence_good": f"a{i}", "sentence_bad": f"b{i}"} for i in range(6)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (folder / "prompts.txt").write_text("one\ntwo\n")
    save_tiny_llama(folder / "model", noise=0.05)
    save_tiny_llama(folder / "reference")
    return folder


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def test_tasks_with_a_reference_and_records(models, tmp_path):
    arguments = ["eval", models / "model", "--tasks", models / "pairs.jsonl", "--against"]
    arguments += [models / "reference", "--records", tmp_path / "r.sqlite", "--budget", "50"]
    shown = run(*arguments, "--keep-chance")
    for expected in [
        "recovery, %",
        "asked: all items; examples before a question: none; BOS auto: the tokenizer adds '<s>'",
        "right only in the reference / only in the model: pairs",
        "a loss of 50 % is allowed; noise floor: 0 (one sample at a time",
    ]:
        assert expected in shown
    assert "resumed: 2 scores" in run(*arguments)
    assert json.loads(run(*arguments, "--json"))["resumed"] == 2
    listed = json.loads(run("records", tmp_path / "r.sqlite", "--metric", "acc_percent", "--json"))
    assert [each["study"] for each in listed] == ["eval tasks"] * 2
    run("records", tmp_path / "r.sqlite", "--export", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().startswith("study,key,subject,metric,value")
    assert "acc_percent" in run("records", tmp_path / "r.sqlite")


def test_tasks_alone_have_scores(models):
    shown = run("eval", models / "model", "--tasks", models / "pairs.jsonl", "--limit", 3)
    assert "score, %" in shown
    assert "verdict" not in shown


def test_similarity(models):
    shown = run(
        "eval", models / "model", "--against", models / "reference", "--similarity",
        "--prompts", models / "prompts.txt", "--new-tokens", 6,
    )  # fmt: skip
    for expected in (
        "ROUGE-L, %",
        "equal from the start, tokens",
        "looping answers of the model, %",
    ):
        assert expected in shown
    assert "prompts: 2 of" in shown


def test_records_of_texts(models, tmp_path):
    (tmp_path / "a.txt").write_text("a text of some length")
    arguments = ["eval", models / "model", "--data", tmp_path / "a.txt"]
    arguments += ["--records", tmp_path / "r.sqlite", "--json"]
    first = run(*arguments)
    again = CliRunner().invoke(app, list(map(str, arguments)))
    assert again.stdout == first
    assert again.stderr.replace("\n", "").startswith("resumed: all numbers are from ")
    listed = json.loads(run("records", tmp_path / "r.sqlite", "--study", "eval", "--json"))
    assert {each["metric"] for each in listed} == {"perplexity", "bits_per_byte"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shots", "1"], "--shots says nothing to an evaluation over texts"),
        (["--tasks", "piqa", "--stride", "3"], "--stride says nothing to --tasks"),
        (["--similarity", "--against", "x", "--budget", "3"], "--budget says nothing to"),
        (["--similarity"], "--similarity compares with a reference"),
        (["--similarity", "--tasks", "piqa"], "are two commands"),
        (["--tasks", "piqa", "--noise-floor"], "--noise-floor is the reference's"),
    ],
)
def test_options_that_do_nothing_are_refused(models, options, message):
    words = " ".join(run("eval", models / "model", *options, code=2).replace("│", " ").split())
    assert message in words
