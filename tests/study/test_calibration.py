"""Studies of calibration sets: what a file may say, and that a study continues where it was."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pennyweight.cli.main import app
from pennyweight.core import CheckpointError, DataError, PennyweightError, RecipeError
from pennyweight.records import Store
from pennyweight.study.calibration import run as calibration_run
from pennyweight.study.calibration.design import cells, key_of, load_study, parse_study
from pennyweight.study.calibration.run import METRICS, collect, run_study


@pytest.fixture
def study(tiny_llama, token_file):
    """2 methods x 2 sets, on a random model, without a tokenizer."""
    return {
        "model": str(tiny_llama),
        "samples": [4], "tokens": 16, "seeds": [0],
        "sets": {"file": str(token_file), "random": "random-tokens"},
        "methods": {
            "gptq": {"rule": [{"scheme": "W4A16_g32", "quantizer": "gptq"}]},
            "rtn": {"rule": [{"scheme": "W4A16_g32", "quantizer": "rtn"}]},
        },
        "evaluate": {"data": [str(token_file)], "max_tokens": 100},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": [1]}, "unknown key 'seed'; did you mean 'seeds'"),
        ({"seeds": []}, "seeds: is empty"),
        ({"sets": {}}, "sets: is empty"),
        ({"methods": {}}, "methods: is empty"),
        ({"samples": [4, 4]}, "samples: .* counts once"),
        ({"samples": ["many"]}, "samples.0: .* found 'many'"),
        ({"samples": [0]}, "methods.gptq: calibrate.samples: expected 1"),
        ({"evaluate": {"datas": ["a"]}}, "evaluate: unknown key 'datas'; did you mean 'data'"),
        ({"methods": {"m": {"rules": []}}}, "methods.m: unknown key 'rules'; known: rule"),
        ({"methods": {"m": {"rule": [{"quantizer": "gtpq"}]}}}, "methods.m: .*mean 'gptq'"),
        ({"sets": {"x": "stdlb"}}, "unknown text source 'stdlb'; did you mean 'stdlib'"),
        ({"sets": {"x": "a.txt*2+stdlib"}}, "has no weight"),
        ({"sets": {"x": "/no/such.txt"}}, "no such file"),
        ({"evaluate": {"data": ["random-ascii"]}}, "name a text to measure on"),
    ],
)
def test_a_wrong_study_says_where(study, change, message):
    with pytest.raises(PennyweightError, match=message):
        parse_study(study | change)


def test_a_missing_model_key(study):
    del study["model"]
    with pytest.raises(RecipeError, match="model: Field required"):
        parse_study(study)


def test_the_shipped_study_loads():
    file = Path(__file__).parents[2] / "recipes/studies/calibration.toml"
    found = load_study(file, ["seeds=[7]"])
    assert len(list(cells(found))) == len(found.methods) * len(found.sets)


def test_a_study_that_is_killed_continues_without_duplicates(study, tmp_path, monkeypatch):
    plan, store = parse_study(study), Store.open(tmp_path / "records.sqlite")
    real, count = calibration_run.quantize, iter(range(2))

    def dies(*args, **options):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(calibration_run, "quantize", dies)
    with pytest.raises(KeyboardInterrupt):
        run_study(plan, store, threads=1)
    assert store.studies() == {"calibration": 2 * len(METRICS)}
    assert [path.name for path in tmp_path.iterdir()] == ["records.sqlite"]
    with pytest.raises(CheckpointError, match="run the study"):
        collect(plan, store, "kl_nats")
    monkeypatch.setattr(calibration_run, "quantize", real)
    assert run_study(plan, store, threads=1) == 2
    assert run_study(plan, store, threads=1) == 0
    assert store.studies() == {"calibration": 4 * len(METRICS)}
    values = collect(plan, store, "kl_nats")
    rtn = {v for c, v in values.items() if c.method == "rtn"}
    assert len(rtn) == 1 and len(set(values.values())) == 3  # rounding looks at no data
    record = store.find(metric="kl_nats", subject={"method": "gptq", "set": "random"})[0]
    assert record.seed == 0 and len(record.plan) == len(record.data) == 64
    assert len(record.detail["calibration_digest"]) == 64 and record.wall_time_s > 0


def test_a_file_that_changed_is_measured_again(study, token_file, tmp_path):
    file = tmp_path / "tokens.json"
    file.write_text(token_file.read_text())
    plan = parse_study(study | {"sets": {"file": str(file)}})
    cell = next(cells(plan))
    before = key_of(plan, cell, "f")
    file.write_text(json.dumps([[1, 2, 3]] * 9))
    assert key_of(plan, cell, "f") != before
    assert key_of(plan, cell, "g") != key_of(plan, cell, "f")


def test_too_little_text_is_an_error(study, tmp_path):
    (tmp_path / "one.json").write_text("[[1]]")
    plan = parse_study(study | {"sets": {"file": str(tmp_path / "one.json")}})
    with pytest.raises(DataError, match="found 1 tokens"):
        run_study(plan, Store.open(tmp_path / "records.sqlite"), threads=1)


def test_the_command_prints_tables_and_json(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "study.toml"
    methods = "".join(
        f'[methods.{name}]\nrule = [{{ scheme = "W4A16_g32", quantizer = "{name}" }}]\n'
        for name in study["methods"]
    )
    file.write_text(
        f'model = "{study["model"]}"\nsamples = [4]\ntokens = 16\nseeds = [0]\n'
        f'evaluate = {{ data = ["{study["evaluate"]["data"][0]}"], max_tokens = 100 }}\n'
        f'[sets]\nfile = "{study["sets"]["file"]}"\nrandom = "random-tokens"\n{methods}'
    )
    run = lambda *more: CliRunner().invoke(app, ["study", "calibration", str(file), "-q", *more])
    shown = run()
    assert shown.exit_code == 0, shown.output
    assert "against file, seed by seed" in shown.stdout and (tmp_path / "records.sqlite").is_file()
    found = json.loads(run("--json").stdout)
    assert len(found["cells"]) == 4 and found["summary"][0]["deviation"] is None
    assert {d["verdict"] for d in found["differences"]} == {
        "cannot be told from 1 seeds", "none: the method does not look at the data",
    }  # fmt: skip
    assert "expected one of" in str(run("--metric", "klnats").exception)
