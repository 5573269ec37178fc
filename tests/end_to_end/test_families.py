"""Every decoder family: the stream computes what transformers computes, and a quantized file
proves."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from pennyweight.model.capture import capture
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.compressed import CompressedCheckpoint
from pennyweight.model.load import load_model
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.stream import Block
from pennyweight.model.workers import start_workers
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.survey import survey
from tests.end_to_end.models import (
    FAMILIES,
    JOINED,
    MIXTURES,
    VOCAB,
    build,
    make_recipe,
    save,
    save_tokens,
)

# transformers runs experts as one grouped product, we run them one by one: other orders of sums.
NOISE = 1e-5


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Family -> its directory, made when it is first asked for."""
    made = {}

    def of(family: str):
        if family not in made:
            made[family] = save(build(family), tmp_path_factory.mktemp(family))
        return made[family]

    return of


def transformers_model(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def same(family: str, found: torch.Tensor, expected: torch.Tensor) -> bool:
    if family in MIXTURES:
        return torch.allclose(found, expected, rtol=NOISE, atol=NOISE)
    return torch.equal(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_gives_the_hidden_states_of_transformers(family, checkpoints):
    path = checkpoints(family)
    skeleton = Skeleton.build(Checkpoint.open(path))
    topologies = survey(skeleton).topologies
    ids = torch.randint(3, VOCAB, (3, 20), generator=torch.Generator().manual_seed(1))
    model, outputs = transformers_model(path), []
    for block in model.get_submodule(skeleton.blocks_path):
        block.register_forward_hook(
            lambda module, args, out: outputs.append(out[0] if isinstance(out, tuple) else out)
        )
    samples = capture(skeleton, ids, torch.float32)
    with start_workers(2) as workers, torch.no_grad():
        for row in ids:
            model(row[None], use_cache=False)  # one by one, as the stream does
        for index, topology in enumerate(topologies):
            block = Block(skeleton, index, topology, torch.float32)
            with block.loaded():
                block.advance(samples, workers)
            expected = outputs[index :: len(topologies)]
            for sample, hidden in zip(samples, expected, strict=True):
                assert same(family, sample.hidden, hidden), f"block {index}"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_gives_the_logits_of_transformers(family, checkpoints):
    path = checkpoints(family)
    ids = torch.randint(3, VOCAB, (1, 20), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = transformers_model(path)(ids).logits
        assert same(family, load_model(path)(ids).logits, expected)


QKV, GATE_UP = {"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}
FUSED = {  # of both blocks together; a family that is not named is like Llama
    "phi": 2 * [QKV],  # fc1 reads the same norm, and is run elsewhere
    "phi3": [],  # stored as one already
    "opt": 2 * [QKV],
    "gpt2": [],
    "gptj": 2 * [QKV],
    "mixtral": 2 * [QKV] + 8 * [{"w1", "w3"}],
    "granitemoe": 2 * [QKV] + 8 * [GATE_UP],
    "llama4_text": 2 * [QKV] + 10 * [GATE_UP],  # 4 experts and the shared one
    "qwen2_moe": 2 * [QKV] + 10 * [GATE_UP],  # 4 experts and the shared one
    "qwen3_moe": 2 * [QKV] + 8 * [GATE_UP],
    "deepseek_v3": 2 * [{"q_a_proj", "kv_a_proj_with_mqa"}] + 6 * [GATE_UP],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_linears_that_share_an_input_are_found(family, checkpoints):
    seen = survey(Skeleton.build(Checkpoint.open(checkpoints(family))))
    found = [sorted(site.name.rpartition(".")[2] for site in sites) for sites in seen.fused()]
    assert sorted(found) == sorted(map(sorted, FUSED.get(family, 2 * [QKV] + 2 * [GATE_UP])))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_no_matrix_of_a_block_stays(family, checkpoints):
    seen = survey(Skeleton.build(Checkpoint.open(checkpoints(family))))
    names = {site.tensor for site in seen.sites}
    assert names.isdisjoint(seen.kept)
    assert names | set(seen.kept) == set(seen.skeleton.checkpoint.tensors)
    wrong = re.compile(
        r"embed|wte|wpe|lm_head|norm|ln_|bias|shared_expert_gate|mlp\.gate\.|\.gate\."
    )
    assert not [name for name in names if wrong.search(name)]
    matrices = re.compile(r"(proj|fc\d|dense|w\d|c_attn|c_fc|attn\.\w+)\.weight$")
    assert not [n for n in seen.kept if matrices.search(n) and not wrong.search(n)]


SCHEMES = [("W4A16_g32", "gptq"), ("W8A8", "rtn")]
ASYMMETRIC = [(family, "W4A16_g32_asym", "rtn") for family in ("gpt2", "phi3", "qwen2_moe")]


# Families that store or run their linears in a way of their own; W8A8 of the others is as Llama's.
ODD = ("llama", "gemma2", "opt", "gpt2", "phi3", *JOINED, "mixtral", "deepseek_v3")


@pytest.mark.parametrize(
    ("family", "scheme", "quantizer"),
    [
        pytest.param(
            family, *scheme,
            marks=() if scheme == SCHEMES[0] or family in ODD else pytest.mark.slow,
        )
        for family in FAMILIES for scheme in SCHEMES
    ] + ASYMMETRIC,
)  # fmt: skip
def test_a_quantized_file_proves(family, scheme, quantizer, checkpoints, tmp_path):
    source = checkpoints(family)
    recipe = make_recipe(
        source, save_tokens(tmp_path), {"scheme": scheme, "quantizer": quantizer},
        min_expert_tokens=0,
    )  # fmt: skip
    result = quantize(recipe, tmp_path / "out", threads=2)
    logits = result.proof["logits"]
    if family == "gpt2":
        assert "Conv1D" in logits["skipped"]
    elif family == "granitemoe":
        assert "experts of a layer in one tensor" in logits["skipped"]
    elif family in MIXTURES and family not in JOINED and scheme != "W4A16_g32":
        assert "fuses experts" in logits["skipped"]
    else:
        assert logits["largest_difference"] <= logits["allowed"]
    exported, before = CompressedCheckpoint.open(tmp_path / "out"), Checkpoint.open(source)
    seen = survey(Skeleton.build(before))
    # The names are those of the checkpoint, or of the experts in it.
    assert set(exported.tensors) == set(seen.skeleton.checkpoint.tensors)
    assert {f"{name}.weight" for name in exported.schemes} == {site.tensor for site in seen.sites}
    for name in before.tensors:
        if name.endswith("bias"):
            assert torch.equal(exported.read(name), before.read(name))
    ids = torch.randint(3, VOCAB, (1, 20), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        error = load_model(result.path)(ids).logits - load_model(source)(ids).logits
        scale = load_model(source)(ids).logits.std()
    assert error.std() < (0.5 if scheme.startswith("W4") else 0.1) * scale


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_an_expert_that_saw_too_little_is_rounded_and_named(family, checkpoints, tmp_path):
    recipe = make_recipe(
        checkpoints(family), save_tokens(tmp_path), {"scheme": "W4A16_g32"},
        min_expert_tokens=1000,
    )  # fmt: skip
    result = quantize(recipe, tmp_path / "out", threads=2)
    card = (result.path / "README.md").read_text()
    assert card.count("the expert saw") == 2 * 4 * 3  # blocks, experts, matrices
    assert "self_attn" not in card
