"""Experts that no calibration token reached, under a scheme whose input scales are calibrated."""

import json

import pytest
import torch

from pennyweight.core import DataError
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.compressed import CompressedCheckpoint
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.stream import Block
from pennyweight.model.workers import start_workers
from pennyweight.pipeline.plan import resolve_plan
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.shards import Here
from pennyweight.pipeline.stage import Stage
from pennyweight.pipeline.survey import survey
from tests.end_to_end.models import build, make_recipe, save, save_tokens

STATIC = {"scheme": "W8A8_static", "quantizer": "gptq"}
EXPERTS = "model.layers.0.block_sparse_moe.experts"


@pytest.fixture
def mixtral(tmp_path):
    """Every token goes to expert 0 or 1, whose router rows are opposite; 2 and 3 score zero."""
    model = build("mixtral", num_experts_per_tok=1)
    with torch.no_grad():
        for layer in model.model.layers:
            rows = layer.mlp.gate.weight
            rows[1], rows[2:] = -rows[0], 0
    return save(model, tmp_path / "source")


def scales(exported: CompressedCheckpoint, projection: str) -> list[float]:
    """The static input scale of one projection of each expert of block 0."""
    names = [f"{EXPERTS}.{number}.{projection}" for number in range(4)]
    found = [exported.input_scale(name) for name in names]
    assert all(scale is not None for scale in found)
    return [scale.item() for scale in found]


def test_an_unseen_expert_takes_the_largest_input_scale_and_is_named(mixtral, tmp_path):
    recipe = make_recipe(mixtral, save_tokens(tmp_path), STATIC, min_expert_tokens=1)
    result = quantize(recipe, tmp_path / "out", threads=2)
    exported = CompressedCheckpoint.open(result.path)
    for projection in ("w1", "w2", "w3"):
        seen, unseen = scales(exported, projection)[:2], scales(exported, projection)[2:]
        assert seen[0] != seen[1]
        assert unseen == [max(seen)] * 2
    linears = json.loads((result.path / "proof.json").read_text())["linears"]
    named = {name for name, fact in linears.items() if "input_scale" in fact["notes"]}
    assert named == {name for name in linears if ".experts.2." in name or ".experts.3." in name}
    assert {linears[name]["tokens"] for name in named} == {0}
    card = (result.path / "README.md").read_text()
    for name in named:
        assert f"- {name}: rtn: the expert saw 0 tokens; input scale: " in card
    assert card.count("input scale: ") == len(named)


def test_an_expert_that_saw_too_little_has_no_input_scale_of_its_own(mixtral, tmp_path):
    """What is too little for the weight is too little for the inputs; rtn reads no Hessian."""
    rule = {"scheme": "W8A8_static", "quantizer": "rtn"}
    recipe = make_recipe(mixtral, save_tokens(tmp_path), rule, min_expert_tokens=1000)
    result = quantize(recipe, tmp_path / "out", threads=2)
    found = scales(CompressedCheckpoint.open(result.path), "w1")
    assert len(set(found)) == 1
    assert f"- {EXPERTS}.0.w1.weight: input scale: " in (result.path / "README.md").read_text()


def test_an_input_that_nothing_reached_is_an_error(mixtral, tmp_path):
    seen = survey(skeleton := Skeleton.build(Checkpoint.open(mixtral)))
    rule = {"scheme": "W8A8_static", "quantizer": "rtn"}
    plan = resolve_plan(make_recipe(mixtral, save_tokens(tmp_path), rule), seen)
    block = Block(skeleton, 0, seen.topologies[0], torch.float32)
    with start_workers(1) as workers:
        stage = Stage(plan=plan, survey=seen, block=block, workers=workers)
        for groups in block.topology.stages:
            with pytest.raises(DataError, match=r"layers.0.*\.weight: no calibration token.*W8A8"):
                list(stage.quantize(groups, Here([], workers)))
