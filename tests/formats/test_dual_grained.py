"""Dual-grained W4A8: all integers fit int8, and the integer path gives the float path's numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import FormatError, Stats, plain
from pennyweight.formats.dual_grained import code_range, dual_grained, integers
from pennyweight.formats.rounding import fit, round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.formats.storage import bits_per_weight, pack, unpack
from pennyweight.model.linear import round_activation, static_input_scale
from pennyweight.quantize import QUANTIZERS
from tests.formats.examples import shifts, sizes, weights
from tests.formats.test_storage import assert_equal
from tests.reference.int_gemm import dual_grained_linear

FORMAT = dual_grained(32)
METHODS = ("rtn", "gptq", "dgq", "qoq")


def stats(cols: int) -> Stats:
    x = torch.randn(4 * cols, cols, generator=torch.Generator().manual_seed(1))
    return Stats(tokens=len(x), gram=x.T @ x)


def quantized(method: str, weight, format=FORMAT):
    return QUANTIZERS[method]()(weight, format, stats(weight.shape[1])).weight


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 99), size=sizes, shift=shifts)
def test_every_integer_fits_int8_and_every_code_its_range(method, seed, size, shift):
    """The guard of the paper: max(0, z - floor(127 / k)) <= q <= min(15, z + floor(127 / k))."""
    q = quantized(method, weights(3, 64, seed, size=size, shift=shift))
    k = (q.scale.codes.int() - 128).repeat_interleave(32, 1)
    zero, codes = q.zero_point.int().repeat_interleave(32, 1), q.codes.int()
    assert ((k >= 1) & (k <= 127) & (zero >= 0) & (zero <= 15)).all()
    assert (codes >= (zero - 127 // k).clamp(min=0)).all()
    assert (codes <= (zero + 127 // k).clamp(max=15)).all()
    assert torch.equal(integers(q).int(), k * (codes - zero))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", METHODS)
def test_row_scale_times_integer_is_the_weight_bit_for_bit(method, dtype):
    """16 bits of mantissa, 7 of k and 7 of the product: no float32 product is rounded."""
    weight = weights(64, 128, seed=0) * torch.logspace(-3, 3, 64)[:, None]
    q = quantized(method, weight, dual_grained(32, dtype))
    exact = q.scale.scale.double() * integers(q).double()
    assert torch.equal(q.dequantize().double(), exact)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_integer_path_is_the_float_path(method, static):
    """One int8 x int8 -> int32 product over all inputs and an epilogue, against float64."""
    activation = parse_scheme("W4A8_dgq_g32" + "_static" * static).activation
    weight, x = weights(24, 256, seed=2), weights(17, 256, seed=3, size=1.0)
    scale = static_input_scale(x.abs().amax(0) / 2, activation) if static else None
    rounded = round_activation(x, activation, scale)
    if scale is None:
        scale = x.abs().amax(1, keepdim=True) / 127
    x_codes, x_scale = (rounded / scale).round(), scale.double()
    assert torch.equal(x_codes * scale, rounded)
    q = quantized(method, weight)
    found = dual_grained_linear(q, x_codes.numpy().astype(np.int8), x_scale.numpy())
    # 8 bits of input, 7 + 16 of weight and 8 of 256 sums are 39: exact in float64, in any order.
    floats = (x_codes.double() @ q.dequantize().double().T) * x_scale
    assert np.array_equal(found, floats.numpy())


def test_bits_are_those_of_the_bytes():
    """4 bits, k and z in a byte each per group, and a float32 per row."""
    assert bits_per_weight(dual_grained(128), (8, 1024)) == 4 + (8 + 8) / 128 + 32 / 1024
    stored = pack(quantized("rtn", weights(8, 1024, seed=0), dual_grained(128)))
    assert sum(part.nbytes for part in stored.values()) * 8 == (4 + 1 / 8 + 1 / 32) * 8 * 1024
    sizes = {name: (part.dtype.itemsize, tuple(part.shape)) for name, part in stored.items()}
    assert sizes == {
        "codes": (1, (8, 512)), "scale.codes": (1, (8, 8)), "scale.scale": (4, (8, 1)),
        "zero_point": (1, (8, 8)),
    }  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 99), size=sizes, shift=shifts)
def test_it_survives_storage(method, seed, size, shift):
    q = quantized(method, weights(3, 64, seed, size=size, shift=shift))
    assert_equal(unpack(pack(q), FORMAT, (3, 64)), q)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_one_sided_group_keeps_its_zero(method, sign):
    weight = sign * (weights(6, 64, seed=4, size=0.02).abs() + 1)
    weight[:, ::5] = 0
    q = quantized(method, weight)
    assert ((q.zero_point >= 0) & (q.zero_point <= 15)).all()
    if method != "gptq":  # error feedback moves a zero weight on purpose
        assert (q.dequantize()[:, ::5] == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_zero_rows_and_zero_groups(method):
    weight = weights(6, 128, seed=5)
    weight[2], weight[4, :32] = 0, 0
    q = quantized(method, weight)
    assert (q.dequantize()[2] == 0).all()
    alone = quantized(method, weight[4:5])
    assert torch.equal(alone.dequantize(), q.dequantize()[4:5])
    # A group of zeros asks for no range: the others of its row are as fine as without it.
    error = (q.dequantize() - weight)[4, 32:].norm() / weight[4, 32:].norm()
    assert error < 0.2


@pytest.mark.parametrize("method", METHODS)
def test_constant_rows(method):
    weight = torch.tensor([0.37, -0.37, 1e-6, 1e4])[:, None].expand(4, 64).contiguous()
    error = (quantized(method, weight).dequantize() / weight - 1).abs()
    # One step of 4 bits at most for error feedback, which trades columns; half of one for others.
    assert (error <= (1 / 15 if method == "gptq" else 1 / 30)).all()


@pytest.mark.parametrize("method", METHODS)
def test_one_huge_value_is_kept_and_costs_the_finest_groups_of_its_row(method):
    """k cannot go below 1: with 1e6 in the row a step is 1e6 / 127 at least, half of which rounds
    all others to zero. It must stay finite, and other rows must not notice."""
    weight = weights(6, 128, seed=6, size=1.0)
    before = quantized(method, weight).dequantize()
    weight[0, 5] = 1e6
    found = quantized(method, weight).dequantize()
    assert torch.equal(found[1:], before[1:])
    assert found.isfinite().all()
    assert (found[0, 5] / 1e6 - 1).abs() < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_groups_that_do_not_divide_are_refused(method):
    with pytest.raises(FormatError, match="96 is not a multiple of group_size 64"):
        quantized(method, weights(2, 96, seed=0), dual_grained(64))


@pytest.mark.parametrize("method", ["dgq", "qoq"])
def test_other_formats_are_refused_with_advice(method):
    with pytest.raises(FormatError, match="use scheme W4A8_dgq_g64"):
        quantized(method, weights(2, 64, seed=0), parse_scheme("W4A16_g64_asym").weight)


def test_the_widest_group_of_a_row_is_stored_without_loss():
    weight = weights(32, 128, seed=7)
    scale, zero = fit(weight, FORMAT)
    steps = (weight.view(32, 4, 32).amax(2) - weight.view(32, 4, 32).amin(2)) / 15
    reach = steps * torch.maximum(zero, 15 - zero)
    widest = reach.argmax(1, keepdim=True)
    # 16 bits of mantissa
    assert torch.allclose(plain(scale).gather(1, widest), steps.gather(1, widest), rtol=2**-16)
    low, high = code_range(FORMAT, scale, zero)
    assert (low.gather(1, widest) == 0).all() and (high.gather(1, widest) == 15).all()
    # Rounding k up may cost others their outermost code.
    assert (low <= 1).all() and (high >= 14).all()
    # A zero point is off by half a step at most, a step 2 / 15 of absmax; and floor(127 / 13) * 13
    # = 117 is the least of its kind.
    rows = 127 * scale.scale[:, 0] / weight.abs().amax(1)
    assert ((rows >= 14 / 15) & (rows <= 16 / 15 * 127 / 117)).all()


@pytest.mark.parametrize("name", ["W4A8_dgq_g128", "W4A8_dgq_g32_static", "W4A8_dgq_g64_staticmin"])
def test_names_say_how_the_input_is_rounded(name):
    scheme = parse_scheme(name)
    assert scheme.name == name and scheme.weight == dual_grained(
        int(name.split("_g")[1].split("_")[0])
    )
    assert scheme.activation.dynamic == ("static" not in name)
    expected = "least_absmax" if name.endswith("min") else "absmax"
    assert scheme.activation.observed == expected


def test_nothing_is_restricted_elsewhere():
    format = parse_scheme("W4A16_g32_asym").weight
    assert code_range(format, *fit(weights(2, 64, seed=0), format)) is None
    q = round_to_nearest(weights(2, 64, seed=0), format)
    with pytest.raises(FormatError, match="integer path"):
        integers(q)
