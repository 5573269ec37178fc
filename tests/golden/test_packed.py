"""Bytes packed by the compressed-tensors library, by make_packed.py: ours are the same."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pennyweight.core import QTensor
from pennyweight.formats.compressed_tensors import decode, parts
from pennyweight.formats.schemes import parse_scheme
from pennyweight.formats.storage import pack

GOLDEN = load_file(Path(__file__).with_name("packed.safetensors"))


def golden(bits: int, kind: str):
    prefix = f"{kind}{bits}."
    found = {k.removeprefix(prefix): v for k, v in GOLDEN.items() if k.startswith(prefix)}
    own = {name: found.pop(name) for name in ("codes", "weight", "zero_point") if name in found}
    name = f"W{bits}A16_g8{'_asym' if kind == 'asym' else ''}"
    return parse_scheme(name, found["weight_scale"].dtype), own, found


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", ["sym", "asym"])
def test_we_write_the_bytes_that_the_library_writes(bits, kind):
    scheme, own, stored = golden(bits, kind)
    unsigned = lambda signed: (signed.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    zero_point = unsigned(own["zero_point"]).float() if kind == "asym" else None
    q = QTensor(
        format=scheme.weight, codes=unsigned(own["codes"]),
        scale=stored["weight_scale"].float(), zero_point=zero_point,
    )  # fmt: skip
    packed = pack(q)
    written = {
        name: part.make(packed.__getitem__)
        for name, part in parts(scheme, tuple(q.codes.shape)).items()
    }
    assert set(written) == set(stored)
    for name, tensor in written.items():
        assert tensor.dtype == stored[name].dtype and torch.equal(tensor, stored[name]), name


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", ["sym", "asym"])
def test_we_read_the_bytes_that_the_library_writes(bits, kind):
    scheme, own, stored = golden(bits, kind)
    assert torch.equal(decode(stored, scheme).dequantize(), own["weight"])


def test_the_library_still_writes_them():
    """A new version that packs otherwise is seen here first."""
    from tests.golden.make_packed import tensors

    for bits in range(2, 9):
        for kind in ("sym", "asym"):
            for name, tensor in tensors(bits, kind == "sym").items():
                assert torch.equal(tensor, GOLDEN[f"{kind}{bits}.{name}"])
