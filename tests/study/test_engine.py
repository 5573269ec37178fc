"""Studies by an engine of other processes: what is sent is enough to get the same records."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pennyweight.cli.engine import engine_of
from pennyweight.cli.main import app
from pennyweight.records import Store
from pennyweight.study.calibration.design import parse_study
from pennyweight.study.calibration.run import run_study
from pennyweight.study.sensitivity.estimators import ESTIMATORS
from pennyweight.study.sensitivity.sense import Places, sense
from tests.engines import Sent, said
from tests.study.benches import request


def sensed(folder: Path, asked, engine=None):
    """The bytes of the table, and the records."""
    folder.mkdir()
    places = Places(output=folder / "sense.json", records=folder / "records.sqlite")
    sense(asked, places, engine=engine, threads=1)
    return places.output.read_bytes(), said(Store.open(places.records))


def test_a_table_is_the_same_whoever_measured_it(tiny_llama, token_file, tmp_path):
    """Also where it is not only weights that are rounded."""
    asked = request(
        tiny_llama, token_file, schemes=("W3A16_g32",), granularity="layer", also=("qk",),
        operands=("int4",),
    )  # fmt: skip
    engine = Sent()
    here, there = sensed(tmp_path / "here", asked), sensed(tmp_path / "there", asked, engine)
    # The bank of a scheme; 2 blocks, and the products of queries and keys in them.
    assert engine.count == 1 + 4
    assert here == there and len(here[1]) == 4
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == [
        "records.sqlite", "sense.json"
    ]  # fmt: skip


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_every_estimator_says_the_same_whoever_measured(
    estimator, tiny_llama, token_file, tmp_path
):
    asked = request(
        tiny_llama, token_file, schemes=("W3A16_g32", "W2A16_g32"), granularity="layer",
        estimator=estimator, quantizer="gptq",
    )  # fmt: skip
    engine = Sent()
    here, there = sensed(tmp_path / "here", asked), sensed(tmp_path / "there", asked, engine)
    # 2 schemes quantized; 2 blocks in 2 schemes, without any, by noise, or all at once.
    trials = {"direct": 4, "in_context": 6, "linearity": 2, "fisher": 2, "output_error": 2}
    assert here == there and engine.count == 2 + trials[estimator]


def calibration_study(model: Path, tokens: Path) -> dict:
    """2 methods on one set, without a tokenizer."""
    rule = lambda quantizer: {"rule": [{"scheme": "W4A16_g32", "quantizer": quantizer}]}
    return {
        "model": str(model), "samples": [4], "tokens": 16, "seeds": [0],
        "sets": {"file": str(tokens)}, "methods": {"gptq": rule("gptq"), "rtn": rule("rtn")},
        "evaluate": {"data": [str(tokens)], "max_tokens": 100},
    }  # fmt: skip


def test_calibration_cells_are_the_same_whoever_made_them(tiny_llama, token_file, tmp_path):
    plan = parse_study(calibration_study(tiny_llama, token_file))
    stores = [Store.open(tmp_path / f"{name}.sqlite") for name in ("here", "there")]
    assert run_study(plan, stores[0], threads=1) == 2
    engine = Sent()
    assert run_study(plan, stores[1], engine=engine, threads=1) == engine.count == 2
    assert said(stores[0]) == said(stores[1]) != []
    assert run_study(plan, stores[1], engine=engine) == 0 and engine.count == 2


def test_the_commands_refuse_half_an_engine(tmp_path):
    for command in (
        ["sense", "pylm", "--schemes", "W4A16_g64", "-o", str(tmp_path / "sense.json")],
        ["profile", "pylm"],
        ["plan", "pylm", "--budget", "kl<=1", "-o", str(tmp_path / "plan.toml")],
        ["quantize", "pylm", "-o", str(tmp_path / "out")],
    ):
        found = CliRunner().invoke(app, [*command, "--workers", "2"])
        assert found.exit_code == 1 and "add --engine ray" in str(found.exception)


def test_what_ray_prints_is_no_result(capsys):
    with engine_of("ray", None, None):
        sys.stdout.write("(raylet) a node died\n")
    with engine_of("local", None, None):
        sys.stdout.write("a table\n")
    found = capsys.readouterr()
    assert (found.out, found.err) == ("a table\n", "(raylet) a node died\n")
