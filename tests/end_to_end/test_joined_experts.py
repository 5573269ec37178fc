"""Experts that the checkpoint stores as one 3-D tensor for all experts of a layer."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pennyweight.api import prove
from pennyweight.core import CheckpointError, FormatError, UnsupportedError
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.compressed import CompressedCheckpoint
from pennyweight.model.experts import rejoin
from pennyweight.model.load import load_model
from pennyweight.model.skeleton import Skeleton
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.survey import survey
from tests.bad_input.helpers import change_tensors, copy
from tests.end_to_end.models import VOCAB, build, make_recipe, save, save_tokens

RTN = {"scheme": "W4A16_g32", "quantizer": "rtn"}
LEFT = {"scheme": "W16A16"}
STORED = {  # family -> the tensors of layer 0 that hold gate and up, and down, of all experts
    "granitemoe": [
        "model.layers.0.block_sparse_moe.input_linear.weight",
        "model.layers.0.block_sparse_moe.output_linear.weight",
    ],
    "llama4_text": [
        "model.layers.0.feed_forward.experts.gate_up_proj",
        "model.layers.0.feed_forward.experts.down_proj",
    ],
}
PREFIX = {
    "granitemoe": "model.layers.0.block_sparse_moe.experts",
    "llama4_text": "model.layers.0.feed_forward.experts",
}


@pytest.fixture(scope="module", params=list(STORED))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def source(family, tmp_path_factory):
    return save(build(family), tmp_path_factory.mktemp(family))


@pytest.fixture
def run(source, tmp_path):
    def quantize_by(*rules, **top):
        recipe = make_recipe(source, save_tokens(tmp_path), *rules, **top)
        return quantize(recipe, tmp_path / "out", threads=2)

    return quantize_by


def experts(family, source) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Gate, up and down [out, in] of each expert of layer 0, by the formulas of the two models."""
    gate_up, down = (Checkpoint.open(source).read(name) for name in STORED[family])
    if family == "llama4_text":  # x @ w
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    return [(*both.chunk(2), last) for both, last in zip(gate_up, down, strict=True)]


def names(family, expert: int) -> list[str]:
    roles = ("gate_proj", "up_proj", "down_proj")
    return [f"{PREFIX[family]}.{expert}.{role}.weight" for role in roles]


def test_every_expert_is_a_matrix_of_the_file(family, source):
    files, seen = Checkpoint.open(source), Skeleton.build(Checkpoint.open(source)).checkpoint
    for expert, matrices in enumerate(experts(family, source)):
        for name, matrix in zip(names(family, expert), matrices, strict=True):
            assert seen.tensors[name].shape == matrix.shape
            assert torch.equal(seen.read(name), matrix)
    assert seen.size_bytes == files.size_bytes
    assert rejoin(seen, ()).tensors == files.tensors


def test_the_census_accounts_for_the_tensors_taken_apart(family, source, run):
    result, files = run(RTN), Checkpoint.open(source)
    census = result.proof["census"]
    assert census["source_tensors"] == len(files.tensors)
    gate_up, down = STORED[family]
    assert census["taken_apart"][gate_up] == 8
    assert census["taken_apart"][down] == 4
    parts = sum(census["taken_apart"].values())
    rest = census["source_tensors"] - len(census["taken_apart"])
    assert census["quantized"] + census["copied_bit_for_bit"] == rest + parts
    linears = json.loads((result.path / "proof.json").read_text())["linears"]
    assert {name for expert in range(4) for name in names(family, expert)} <= set(linears)
    assert prove(result.path, source) == {k: v for k, v in result.proof.items() if k != "size"}


def test_experts_that_are_left_stay_in_their_tensor(family, source, run):
    result = run(LEFT | {"match": "*.experts.*"}, RTN)
    files, exported = Checkpoint.open(source), CompressedCheckpoint.open(result.path)
    for name in STORED[family]:
        assert torch.equal(exported.read(name), files.read(name))
    assert result.proof["census"]["taken_apart"] == {}
    logits = result.proof["logits"]
    if family == "llama4_text":
        assert "one by one" in logits["skipped"]  # transformers does, of a quantized Llama-4
    else:
        assert logits["largest_difference"] <= logits["allowed"]
    config = json.loads((result.path / "config.json").read_text())["quantization_config"]
    # vLLM looks for the single experts there to know that none of them is quantized.
    assert {name.removesuffix(".weight") for name in names(family, 3)} <= set(config["ignore"])


def test_dense_cannot_put_experts_together_again(source, run):
    with pytest.raises(FormatError, match="the source keeps all experts in"):
        run(RTN, target="dense")


def test_experts_of_which_some_are_left(family, source, run):
    """Only down_proj of expert 3 is quantized: its tensor comes apart, the other one does not."""
    rule = RTN | {"match": f"{PREFIX[family]}.3.down_proj.weight"}
    result = run(rule, LEFT | {"match": "*"})
    files, exported = Checkpoint.open(source), CompressedCheckpoint.open(result.path)
    gate_up, down = STORED[family]
    assert torch.equal(exported.read(gate_up), files.read(gate_up))
    assert down not in exported.tensors
    assert result.proof["census"]["taken_apart"] == {down: 4}
    for expert, (_, _, matrix) in enumerate(experts(family, source)):
        found = exported.read(names(family, expert)[2])
        assert torch.equal(found, matrix) == (expert != 3)
    ids = torch.randint(3, VOCAB, (1, 20), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        change = load_model(result.path)(ids).logits - load_model(source)(ids).logits
    assert 0 < change.std() < 0.2


def test_a_router_is_no_matrix_however_many_experts_it_has(family, tmp_path):
    """Llama-4's is an nn.Linear; up to eight outputs would be taken for a gate anyway."""
    path = save(build(family, num_local_experts=9), tmp_path / "nine")
    seen = survey(Skeleton.build(Checkpoint.open(path)))
    routers = {name for name, why in seen.kept.items() if why == "router or gate"}
    assert {name for name in seen.skeleton.checkpoint.tensors if "router" in name} == routers
    assert len(routers) == 2


def test_a_tensor_of_another_number_of_experts_is_an_error(family, source, tmp_path):
    model = copy(source, tmp_path / "model")
    _, down = STORED[family]

    def shorten(tensors):
        tensors[down] = tensors[down][:3].clone()

    change_tensors(model, shorten)
    with pytest.raises(
        CheckpointError, match=rf"{down}: shape \[3, .*config.json of another model"
    ):
        Skeleton.build(Checkpoint.open(model))


def test_a_missing_expert_is_an_error(family, source, run):
    """Of one that was quantized: routed to, it would be passed over without a word."""
    result = run(RTN)

    def remove(tensors):
        for name in [name for name in tensors if name.startswith(f"{PREFIX[family]}.2.")]:
            del tensors[name]

    change_tensors(result.path, remove)
    with pytest.raises(CheckpointError, match=r"3 such experts in the checkpoint, but .* has 4"):
        load_model(result.path)


def test_a_layout_that_is_not_known_is_an_error(tmp_path):
    """gpt-oss: biases, and gate and up interleaved."""
    config = AutoConfig.for_model(
        "gpt_oss", hidden_size=64, intermediate_size=64, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, vocab_size=VOCAB,
    )  # fmt: skip
    path = save(AutoModelForCausalLM.from_config(config), tmp_path / "gpt_oss")
    with pytest.raises(UnsupportedError, match=r"layers\.0\.mlp\.experts\.gate_up_proj: .*GptOss"):
        Skeleton.build(Checkpoint.open(path))
