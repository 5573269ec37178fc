"""Bytes written by the compressed-tensors library, by make_floats.py: ours are the same."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pennyweight.formats.compressed_tensors import decode, parts
from pennyweight.formats.rounding import fit, round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.formats.storage import pack
from tests.golden.make_floats import SCHEMES

GOLDEN = load_file(Path(__file__).with_name("floats.safetensors"))


def golden(name: str):
    """(scheme, source weight, what the library decodes, what it stored)."""
    prefix = f"{name}."
    found = {k.removeprefix(prefix): v for k, v in GOLDEN.items() if k.startswith(prefix)}
    scheme = parse_scheme(name, torch.float32)
    return scheme, found.pop("source").float(), found.pop("decoded"), found


def same_bytes(a, b) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("name", SCHEMES)
def test_we_write_the_bytes_that_the_library_writes(name):
    scheme, weight, _, stored = golden(name)
    q = round_to_nearest(weight, scheme.weight, decode(stored, scheme).scale)
    packed = pack(q)
    written = {
        part: each.make(packed.__getitem__)
        for part, each in parts(scheme, tuple(weight.shape)).items()
    }
    assert set(written) == set(stored)
    for part, tensor in written.items():
        assert tensor.shape == stored[part].shape and same_bytes(tensor, stored[part]), part


@pytest.mark.parametrize("name", SCHEMES)
def test_we_read_the_bytes_that_the_library_writes(name):
    scheme, _, decoded, stored = golden(name)
    ours = decode(stored, scheme).dequantize()
    assert torch.equal(ours.to(decoded.dtype), decoded)
    if decoded.dtype is torch.bfloat16:  # products of few bits: nothing was rounded
        assert torch.equal(ours, decoded.float())


@pytest.mark.parametrize("name", ["MXFP4A16", "MXFP6A16"])
def test_its_exponents_follow_the_rule_that_we_call_even(name):
    """Not for MXFP8, whose amax the library rounds to the one digit of fp4 as well."""
    _, weight, _, stored = golden(name)
    scale, _ = fit(weight, parse_scheme(f"{name}_even").weight)
    live = weight.view(len(weight), -1, 32).abs().amax(2) > 0
    exponents = scale.to(torch.float8_e8m0fnu).view(torch.uint8)
    assert torch.equal(exponents[live], stored["weight_scale"][live])


def test_the_library_still_writes_them():
    """A new version that packs otherwise is seen here first."""
    from tests.golden.make_floats import tensors

    for name in SCHEMES:
        for part, tensor in tensors(name).items():
            assert same_bytes(tensor, GOLDEN[f"{name}.{part}"]), (name, part)
