"""Schemes of floats and microscaling: recipe -> files -> proof -> loaded again."""

import json

import pytest
import torch

from pennyweight.core import FormatError
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.load import load_model
from pennyweight.model.opened import open_checkpoint
from pennyweight.pipeline.prove import prove
from pennyweight.pipeline.quantize import quantize
from tests.end_to_end.models import VOCAB, build, make_recipe, save, save_tokens

LAYOUTS = {
    "W8A8_fp8": "float-quantized",
    "W8A8_fp8_tensor_static": "float-quantized",
    "W8A16_fp8": "naive-quantized",
    "W8A8_tensor": "int-quantized",
    "MXFP4": "mxfp4-pack-quantized",
    "MXFP6A16": "mxfp6-pack-quantized",
    "MXFP8A16_rceil": "mxfp8-quantized",
    "NVFP4": "nvfp4-pack-quantized",
    "NVFP4A16": "nvfp4-pack-quantized",
}
OURS = ["MXINT4", "W4A16_g32_fzp", "MXFP4A16_tensor"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save(build("llama"), tmp_path_factory.mktemp("float") / "source")


def run(source, folder, scheme, quantizer="rtn"):
    recipe = make_recipe(source, save_tokens(folder), {"scheme": scheme, "quantizer": quantizer})
    return quantize(recipe, folder / "out", threads=2)


def logits(folder):
    ids = torch.randint(VOCAB, (1, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return load_model(folder)(input_ids=ids).logits


@pytest.mark.parametrize("scheme", LAYOUTS)
def test_the_library_and_transformers_read_what_was_computed(scheme, source, tmp_path):
    result = run(source, tmp_path, scheme)
    config = json.loads((result.path / "config.json").read_text())["quantization_config"]
    assert config["format"] == LAYOUTS[scheme]
    assert "compressed-tensors" in result.proof["weights"]["readers"]
    assert result.proof["logits"]["largest_difference"] <= result.proof["logits"]["allowed"]
    expected = scheme.removesuffix("_rceil")  # how exponents were chosen is not stored
    assert {s.name for s in open_checkpoint(result.path).schemes.values()} == {expected}
    assert prove(result.path, source)["weights"] == result.proof["weights"]
    assert logits(result.path).isfinite().all()


@pytest.mark.parametrize("scheme", OURS)
def test_what_the_library_cannot_hold_is_stored_in_our_layout(scheme, source, tmp_path):
    result = run(source, tmp_path, scheme, quantizer="mse_clip")
    assert {s.name for s in open_checkpoint(result.path).schemes.values()} == {scheme}
    assert result.proof["weights"]["equal_bit_for_bit"] == result.proof["census"]["quantized"]
    assert logits(result.path).isfinite().all()


def test_a_second_scheme_is_read_by_the_library_if_not_by_transformers(source, tmp_path):
    rules = [
        {"match": "*.self_attn.*", "scheme": "NVFP4A16", "quantizer": "rtn"},
        {"match": "*", "scheme": "W8A16_fp8", "quantizer": "rtn"},
    ]
    recipe = make_recipe(source, save_tokens(tmp_path), *rules)
    result = quantize(recipe, tmp_path / "out", threads=2)
    assert "compressed-tensors" in result.proof["weights"]["readers"]
    assert "bfloat16 alone" in result.proof["logits"]["skipped"]


def test_inputs_are_rounded_when_the_result_is_loaded(source, tmp_path):
    """The same weights with and without rounded inputs give other logits, close to each other."""
    for name in ("a16", "a4"):
        (tmp_path / name).mkdir()
    plain = logits(run(source, tmp_path / "a16", "NVFP4A16").path)
    rounded = logits(run(source, tmp_path / "a4", "NVFP4").path)
    difference = (plain - rounded).norm() / plain.norm()
    assert 0 < difference < 0.5


def test_linears_that_an_engine_fuses_share_the_scale_of_the_tensor(source, tmp_path):
    """vLLM takes one weight_global_scale for q, k and v, and one for gate and up."""
    result = run(source, tmp_path, "NVFP4")
    files = Checkpoint.open(result.path)
    for fused in (("q", "k", "v"), ("gate", "up")):
        names = [n for n in files.tensors if n.endswith("_global_scale") and ".0." in n]
        for kind in ("weight", "input"):
            scales = [
                files.read(name).item()
                for name in names
                if name.split(".")[-2].removesuffix("_proj") in fused and f".{kind}_" in name
            ]
            assert len(scales) == len(fused) and len(set(scales)) == 1


def test_blocks_of_fp8_and_groups_of_inputs(save_tiny, tmp_path):
    wide = {"hidden_size": 256, "intermediate_size": 384, "num_key_value_heads": 2}
    source = save_tiny("llama", vocab_size=VOCAB, **wide)
    result = run(source, tmp_path, "W8A8_fp8_block", quantizer="gptq")
    files = Checkpoint.open(result.path).tensors
    assert files["model.layers.0.mlp.down_proj.weight_scale"].shape == (2, 3)
    assert result.proof["logits"]["largest_difference"] <= result.proof["logits"]["allowed"]
    assert logits(result.path).isfinite().all()


def test_blocks_that_do_not_divide_name_the_tensor(source, tmp_path):
    with pytest.raises(FormatError, match=r"proj\.weight: .* is not a multiple of group_"):
        run(source, tmp_path, "W8A8_fp8_block")


def test_inputs_that_do_not_divide_name_the_tensor(source, tmp_path):
    with pytest.raises(FormatError, match=r"proj\.weight: in_features .* group_size 64"):
        run(source, tmp_path, "MXINT4_g64")
