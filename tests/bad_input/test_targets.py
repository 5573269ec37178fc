"""`re:` targets in the config of a quantized checkpoint are somebody else's regular expressions."""

import json

import pytest

from pennyweight.core import CheckpointError
from pennyweight.model import compressed
from pennyweight.model.compressed import CompressedCheckpoint
from pennyweight.pipeline.quantize import quantize
from tests.bad_input.helpers import change_config, recipe


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("re:(?:[a-z0-9_.]+[a-z0-9_.]*)+!", "no group of the config names it"),  # re: for years
        ("re:(?R)", "came to no end"),
        ("re:(", "missing )"),
        ("re:.*norm", "no group of the config names it"),
    ],
)
def test_targets_that_cannot_be_used(target, found, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "MATCH_SECONDS", 0.1)
    path = quantize(recipe(tiny_llama), tmp_path / "out").path
    quantization = json.loads((path / "config.json").read_text())["quantization_config"]
    quantization["config_groups"]["group_0"]["targets"] = [target]
    change_config(path, quantization_config=quantization)
    with pytest.raises(CheckpointError) as raised:
        CompressedCheckpoint.open(path)
    assert found in str(raised.value)
