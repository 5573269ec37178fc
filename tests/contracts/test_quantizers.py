"""What every registered quantizer promises. A new file in quantize/ is tested here unasked."""

import pytest
import torch

from pennyweight.core import FormatError, NumericalError, Stats
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.storage import pack, unpack
from pennyweight.quantize import QUANTIZERS
from tests.contracts.problems import output_loss, problem
from tests.formats.examples import formats
from tests.formats.test_storage import assert_equal

FORMATS = formats()
USUAL = "W4A16_g32_asym"


@pytest.fixture(params=list(QUANTIZERS))
def quantize(request):
    return QUANTIZERS[request.param]()


@pytest.mark.parametrize("name", FORMATS)
def test_codes_fit_the_grid_and_shapes_agree(quantize, name):
    weight, stats = problem()
    q = quantize(weight, FORMATS[name], stats).weight
    assert q.format == FORMATS[name] and q.codes.shape == weight.shape
    assert int(q.codes.max()) < 2 ** FORMATS[name].grid.bits
    assert q.codes.is_contiguous() and q.dequantize().isfinite().all()


@pytest.mark.parametrize("name", FORMATS)
def test_result_survives_storage(quantize, name):
    weight, stats = problem()
    q = quantize(weight, FORMATS[name], stats).weight
    stored = unpack(pack(q), FORMATS[name], tuple(weight.shape))
    assert_equal(stored, q)
    assert torch.equal(stored.dequantize(), q.dequantize())


def test_arguments_are_left_alone(quantize):
    weight, stats = problem()
    before = weight.clone(), stats.gram.clone(), stats.absmax.clone()
    quantize(weight, FORMATS[USUAL], stats)
    assert all(map(torch.equal, before, (weight, stats.gram, stats.absmax)))


def test_the_same_call_gives_the_same_bits(quantize):
    results = [quantize(*_call(*problem())).weight for _ in range(2)]
    assert_equal(*results)


def _call(weight, stats, name=USUAL):
    return weight, FORMATS[name], stats


@pytest.mark.parametrize("name", [name for name, f in FORMATS.items() if f.group_rows == 1])
def test_rows_are_independent(quantize, name):
    """A scale that is itself quantized is too, as long as its groups lie within a row."""
    weight, stats = problem(rows=64)
    whole = quantize(weight, FORMATS[name], stats).weight
    parts = [quantize(weight[i : i + 32], FORMATS[name], stats).weight for i in (0, 32)]
    assert_equal(parts[0].join(parts[1:]), whole)


def test_the_order_of_rows_does_not_matter(quantize):
    weight, stats = problem()
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))
    a = quantize(*_call(weight, stats)).dequantize()[order]
    b = quantize(*_call(weight[order], stats)).dequantize()
    assert torch.equal(a, b)


def test_knobs_of_time_change_nothing(quantize):
    """Statistics that are already there are used; the result does not depend on who derived
    them."""
    weight, stats = problem()
    first = quantize(*_call(weight, stats)).weight
    assert_equal(quantize(*_call(weight, stats)).weight, first)


@pytest.mark.parametrize("name", ["W4A16_g32_asym", "W3A16_g64_asym", "W2A16_g32", "W4A16", "W8A8"])
def test_zero_weight_stays_zero(quantize, name):
    weight, stats = problem()
    assert (quantize(*_call(weight * 0, stats, name)).dequantize() == 0).all()


def test_ragged_group_is_refused(quantize):
    weight, stats = problem(columns=96)
    with pytest.raises(FormatError, match="96 is not a multiple of group_size 64"):
        quantize(*_call(weight, stats, "W3A16_g64_asym"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(quantize, bad):
    weight, stats = problem()
    weight[3, 7] = bad
    with pytest.raises(NumericalError, match="NaN or Inf"):
        quantize(*_call(weight, stats))


def test_what_it_needs_is_what_it_reads(quantize):
    weight, stats = problem()
    given = {name: getattr(stats, name) for name in quantize.needs}
    enough = Stats(tokens=stats.tokens, **given)
    assert_equal(quantize(*_call(weight, enough)).weight, quantize(*_call(weight, stats)).weight)
    if "gram" in quantize.needs:
        with pytest.raises(NumericalError, match="needs calibration data"):
            quantize(*_call(weight, Stats()))


def declared_loss(quantize, error, stats):
    """What the quantizer says it lowers."""
    if "gram" in quantize.needs:
        return output_loss(error, stats)
    return error.abs().pow(getattr(quantize, "p", 2)).sum()


@pytest.mark.parametrize("name", FORMATS)
def test_not_worse_than_rounding_on_the_loss_it_declares(quantize, name):
    weight, stats = problem()
    loss = lambda q: declared_loss(quantize, q.dequantize() - weight, stats)
    rtn = loss(round_to_nearest(weight, FORMATS[name]))
    assert loss(quantize(weight, FORMATS[name], stats)) <= rtn * (1 + 1e-6)


def test_a_row_of_one_column_and_a_column_of_one_row(quantize):
    for rows, columns in [(1, 32), (5, 1)]:
        weight, stats = problem(rows=rows, columns=columns)
        assert quantize(*_call(weight, stats, "W4A16")).dequantize().shape == (rows, columns)


def test_it_says_where_it_comes_from(quantize):
    assert quantize.source and quantize.needs <= {"gram", "absmax"}
