"""GPT-2's Conv1D: whole bytes are stored [in, out] as in the source, packed codes [out, in]."""

import pytest
import torch

from pennyweight.api import prove
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.pipeline.quantize import quantize
from tests.end_to_end.models import build, make_recipe, save, save_tokens

ATTENTION = "transformer.h.0.attn"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save(build("gpt2"), tmp_path_factory.mktemp("gpt2"))


def quantized(source, folder, scheme):
    rule = {"scheme": scheme, "quantizer": "rtn"}
    result = quantize(make_recipe(source, save_tokens(folder), rule), folder / "out", threads=2)
    again = prove(result.path, source)
    assert again["weights"] == result.proof["weights"]
    return Checkpoint.open(result.path)


@pytest.mark.parametrize("scheme", ["W8A8", "W8A8_static"])
def test_bytes_lie_as_in_the_source(source, tmp_path, scheme):
    """An engine turns every `.weight` of a Conv1D when it loads it. c_proj is square: its
    orientation shows in the numbers alone."""
    files, exported = Checkpoint.open(source), quantized(source, tmp_path, scheme)
    for name in (f"{ATTENTION}.c_attn", f"{ATTENTION}.c_proj"):
        weight, codes = files.read(f"{name}.weight"), exported.read(f"{name}.weight")
        scale = exported.read(f"{name}.weight_scale")
        assert codes.dtype is torch.int8
        assert codes.shape == weight.shape
        assert scale.shape == (weight.shape[1], 1)
        # Half a step, and what rounding the product to float32 adds; the largest weight of a
        # channel may be clipped by another half.
        assert ((codes * scale.T - weight).abs() <= 1.001 * scale.T).all()


def test_packed_codes_lie_as_a_linear_has_them(source, tmp_path):
    exported = quantized(source, tmp_path, "W4A16_g32")
    assert exported.read(f"{ATTENTION}.c_attn.weight_shape").tolist() == [192, 64]
    assert exported.tensors[f"{ATTENTION}.c_attn.weight_packed"].shape == (192, 8)
