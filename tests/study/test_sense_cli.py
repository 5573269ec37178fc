"""`pennyweight sense` from the command line."""

import json

import pytest
import typer
from typer.testing import CliRunner

from pennyweight.cli.sense import sense_command
from pennyweight.core import RecipeError
from pennyweight.study.sensitivity.table import Sensitivity

app = typer.Typer()
app.command()(sense_command)


@pytest.fixture
def run(tiny_llama, token_file, tmp_path):
    def invoke(*arguments):
        fixed = [
            str(tiny_llama), "--data", str(token_file), "--quantizer", "rtn", "--granularity",
            "layer", "--context", "32", "--threads", "1", "-o", str(tmp_path / "sense.json"),
            "--schemes", "W4A16_g32,W4A16_g64", "--calibrate", str(token_file),
        ]  # fmt: skip
        return CliRunner().invoke(app, [*fixed, *arguments], catch_exceptions=False)

    return invoke


def test_the_table_and_the_comparison(run, tmp_path):
    found = run("--granularity", "fused", "--max-tokens", "126", "--compare",
                "--estimator", "fisher", "--set", "estimator.samples=2")  # fmt: skip
    assert found.exit_code == 0
    rows = [line for line in found.stdout.splitlines() if "down_proj" in line]
    assert len(rows) == 2 and all("-" in row.split("│")[3] for row in rows)  # 96 wide, g64
    for expected in (
        "5.00",
        "fisher",
        "observes no inputs",
        "KL of all at once",
        "rtn; 126 tokens",
    ):
        assert expected in found.stdout, expected
    table = Sensitivity.load(tmp_path / "sense.json")
    assert table.settings["estimator_options"] == {"samples": 2}
    assert "W4A16_g64" not in table.by_name["model.layers.0.mlp.down_proj"].options


def test_json_is_the_file(run, tmp_path):
    found = run("--json", "--quiet", "--schemes", "W4A16_g32")
    printed = json.loads(found.stdout)
    assert printed == json.loads((tmp_path / "sense.json").read_text())


def test_options_of_neither(run):
    with pytest.raises(RecipeError, match=r"--set: expected quantizer.KEY .* found estimatr"):
        run("--set", "estimatr.samples=2")
