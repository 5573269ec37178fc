"""`diagnose` prints what it found, or all of it as JSON; progress stays off stdout."""

import json

import pytest
from typer.testing import CliRunner

from pennyweight.cli.main import app
from tests.bad_input.helpers import change_tensors, copy

BAD = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def arguments(tiny_llama, token_file, tmp_path_factory) -> list[str]:
    """A pair of which one linear of two blocks was set to zero."""
    broken = copy(tiny_llama, tmp_path_factory.mktemp("pair") / "broken")
    change_tensors(broken, lambda tensors: tensors[f"{BAD}.weight"].zero_())
    return [
        "diagnose", str(tiny_llama), str(broken), "--data", str(token_file), "--context", "32",
        "--max-tokens", "128", "--document-tokens", "33", "--target", "kl<=1e-9", "--threads", "1",
    ]  # fmt: skip


def test_tables_name_the_culprit_and_what_to_try(arguments):
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    parts = [row for row in rows if row[:1] == ["1.mlp.up_proj"]]
    # alone, without; own, inherited, total, weight, activation: all of its output is missing
    assert len(parts) == 1 and parts[0][1] == "plain" and float(parts[0][3]) == 0.0
    assert parts[0][4:] == ["100%", "0", "100%", "100%", "0"]
    assert f"  {BAD}\n" in result.stdout
    assert f"1. More bits for {BAD}.\n" in result.stdout
    assert 'scheme = "W16A16"' in result.stdout
    assert "parts, each measured twice" in result.stderr and "twice" not in result.stdout


def test_json_holds_every_part_and_parses(arguments, tmp_path):
    options = ["--json", "-q", "--granularity", "layer", "--records", str(tmp_path / "r.sqlite")]
    result = CliRunner().invoke(app, [*arguments, *options], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert [part["name"] for part in found["parts"]] == ["model.layers.1", "model.layers.0"]
    assert found["cure"]["parts"] == ["model.layers.1"]
    assert len(found["errors"]) == 14 + 2
    assert result.stderr == ""
    listed = CliRunner().invoke(app, ["records", str(tmp_path / "r.sqlite"), "--json"])
    assert {each["study"] for each in json.loads(listed.stdout)} == {"diagnose"}
