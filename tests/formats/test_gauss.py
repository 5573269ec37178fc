"""Grids for Gaussian numbers: optimal, and groups rotated until they are Gaussian."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import FormatError, UnknownNameError
from pennyweight.formats import GRIDS
from pennyweight.formats.gauss import Plane, Rotated, hadamard, signs
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.formats.storage import bits_per_weight, pack, unpack
from pennyweight.model.load import load_model
from tests.formats.examples import sizes, weights
from tests.formats.test_storage import assert_equal

PLANES = [name for name, grid in GRIDS.items() if isinstance(grid, Plane)]

# Mean squared errors of a standard normal number. Max 1960, table I, for one dimension; for two,
# what tools/make_gauss_grids.py prints, which no published optimum lies below.
LEAST = {
    "gauss1_4": 0.1175, "gauss1_8": 0.03454, "gauss1_16": 0.009497,
    "gauss2_16": 0.1076, "gauss2_64": 0.02982, "gauss2_256": 0.00778,
}  # fmt: skip


@pytest.mark.parametrize("name", LEAST)
def test_error_on_gaussian_numbers_is_the_least(name):
    value = torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    error = (GRIDS[name].nearest_(value.clone()) - value).square().mean()
    # 1 %: four standard errors of the mean of 2^20 squares
    assert error == pytest.approx(LEAST[name], rel=0.01)


def test_known_values():
    """Max 1960, table I."""
    assert GRIDS["gauss1_4"].values == pytest.approx((-1.5104, -0.4528, 0.4528, 1.5104), abs=1e-4)


@pytest.mark.parametrize("name", PLANES)
@given(seed=st.integers(0, 99), size=st.sampled_from([0.1, 1.0, 3.0, 30.0]))
def test_the_map_of_cells_finds_the_nearest_point(name, seed, size):
    grid = GRIDS[name]
    value = weights(4, 100, seed, size=size)
    points = torch.tensor(grid.points)
    distance = (value.view(-1, 1, 2) - points).square().sum(2)
    found = distance.gather(1, grid.encode(value).view(-1, 1).long())[:, 0]
    assert torch.equal(found, distance.amin(1))


@pytest.mark.parametrize("name", PLANES)
def test_every_code_decodes_and_encodes_to_itself(name):
    grid = GRIDS[name]
    codes = torch.arange(2**grid.bits, dtype=torch.int32).to(torch.uint8)[None]
    assert grid.decode(codes).shape == (1, 2 * codes.shape[1])
    assert torch.equal(grid.encode(grid.decode(codes)), codes)


@pytest.mark.parametrize("block", [1, 2, 8, 256])
def test_hadamard_is_its_own_inverse_and_keeps_lengths(block):
    value = weights(5, block, 0, size=1.0)
    rotated = hadamard(value)
    # log2(block) additions of float32, there and back
    assert torch.allclose(hadamard(rotated), value, atol=1e-5)
    assert torch.allclose(rotated.norm(dim=1), value.norm(dim=1), rtol=1e-5)
    matrix = hadamard(torch.eye(block)) * block**0.5
    assert torch.allclose(matrix.abs(), torch.ones(block, block)) and torch.equal(matrix, matrix.T)


@pytest.mark.parametrize("name", ["W4A16_higgs_g64", "W3A16_higgs1_g32", "W2A16_higgs_g2"])
@given(rows=st.integers(1, 5), groups=st.integers(1, 3), seed=st.integers(0, 9), size=sizes)
def test_storage_and_rows(name, rows, groups, seed, size):
    format = parse_scheme(name).weight
    weight = weights(rows, 64 * groups, seed, size=size)
    q = round_to_nearest(weight, format)
    assert q.shape == weight.shape and q.dequantize().isfinite().all()
    assert_equal(unpack(pack(q), format, q.shape), q)
    assert_equal(q.rows(0, 1).join([q.rows(1, rows)]), q)
    assert torch.equal(q.rows(rows - 1, rows).dequantize(), q.dequantize()[rows - 1 :])


def test_outliers_are_spread():
    """What HIGGS rotates for: a few large weights ruin a group's scale, and a rotation spreads
    them."""
    weight = weights(16, 1024, 0)
    weight[:, ::100] *= 20

    def error(name):
        q = round_to_nearest(weight, parse_scheme(name).weight)
        return (q.dequantize() - weight).norm() / weight.norm()

    assert error("W4A16_higgs_g256") < error("W4A16_nf4_g256") * 0.8
    assert error("W4A16_higgs_g256") < error("W4A16_higgs1_g256")
    assert error("W4A16_higgs_g256") == pytest.approx(LEAST["gauss2_256"] ** 0.5, rel=0.05)


def test_zero_groups_are_zero_though_the_grid_has_no_zero():
    weight = weights(2, 128, 0)
    weight[1, 64:] = 0
    out = round_to_nearest(weight, parse_scheme("W3A16_higgs_g64").weight).dequantize()
    assert (out[1, 64:] == 0).all() and (out[1, :64] != 0).any()


def test_bits():
    assert bits_per_weight(parse_scheme("W3A16_higgs_g256").weight, (4, 1024)) == 3 + 16 / 256
    assert bits_per_weight(parse_scheme("W4A16_higgs1_g64").weight, (4, 1024)) == 4 + 16 / 64


def test_the_signs_are_part_of_the_format():
    weight, one = weights(2, 64, 0, size=1.0), Rotated(GRIDS["gauss2_16"], 64)
    other = Rotated(GRIDS["gauss2_16"], 64, seed=1)
    assert one == Rotated(GRIDS["gauss2_16"], 64) and one != other
    assert not torch.equal(one.encode(weight), other.encode(weight))


@pytest.mark.parametrize("bad", ["W4A16_higgs_g96", "W4A16_higgs_g1", "W5A16_higgs_g64"])
def test_what_is_no_power_of_two_has_no_name(bad):
    with pytest.raises(UnknownNameError, match="did you mean 'W"):
        parse_scheme(bad)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(FormatError, match="192 is not a multiple of group_size 128"):
        round_to_nearest(weights(2, 192, 0), parse_scheme("W4A16_higgs_g128").weight)


def test_a_rotated_model_has_the_same_logits():
    """Inputs and weights of every linear in the rotation of HIGGS: (x R)(W R)^T = x W^T."""
    model, ids = load_model("pylm"), torch.arange(40, 104)[None]
    with torch.inference_mode():
        before = model(input_ids=ids, use_cache=False).logits
        for linear in (m for m in model.model.modules() if isinstance(m, torch.nn.Linear)):
            linear.weight.copy_(rotated(linear.weight))
            linear.register_forward_pre_hook(lambda _, given: (rotated(given[0]),))
        after = model(input_ids=ids, use_cache=False).logits
    assert torch.allclose(after, before, atol=1e-4 * float(before.abs().max()))
    assert not torch.equal(after, before)  # something was rotated


def rotated(value, block: int = 128):
    runs = value.reshape(*value.shape[:-1], -1, block)
    return hadamard(runs * signs(block, 0)).flatten(-2)
