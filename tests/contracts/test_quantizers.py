"""What every registered quantizer promises. A new file in quantize/ is tested here unasked."""

from dataclasses import fields, replace

import pytest
import torch

from pennyweight.core import FormatError, NumericalError, Serial, Stats
from pennyweight.formats.corrections import pack_corrections
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.storage import pack, unpack
from pennyweight.pipeline.solve import solve as whole
from pennyweight.quantize import QUANTIZERS
from pennyweight.quantize.base import Adds
from pennyweight.quantize.qoq import QoQ
from pennyweight.quantize.squeezellm import SqueezeLLM
from tests.contracts.problems import output_loss, pairs, problem, reordered, takes, with_choice
from tests.formats.examples import formats, looked_up
from tests.formats.test_storage import assert_equal

FORMATS = formats() | looked_up()
GROUPED = ("W4A16_g32_asym", "dual-grained", "W4A16_higgs_g32")  # groups of 32
USUAL = (*GROUPED, "W3A16_table")
OF_ROWS = ("W4A16", "dual-grained rows", "W3A16_table")  # one group to the row


@pytest.fixture(params=list(QUANTIZERS))
def quantize(request):
    return QUANTIZERS[request.param]()


# One format of each kind. Those that build on these quantizers meet the others in `make test-slow`.
CORE = (
    *USUAL, "W3A16_g64_asym", "W2A16_g32", "W4A16", "W8A8", "W4A16_tensor", "W8A16_fp8", "MXFP4A16",
    "NVFP4A16", "W4A16_nf4_g32", "bilevel", "three levels", "dual-grained rows",
)  # fmt: skip
PLAIN = ("rtn", "mse_clip", "hqq", "gptq")


def with_each(names):
    cases = [
        pytest.param(quantizer, name, marks=() if quick else pytest.mark.slow)
        for quantizer, name in pairs(FORMATS, names)
        for quick in [quantizer in PLAIN or name in CORE]
    ]
    return pytest.mark.parametrize(("quantize", "name"), cases, indirect=["quantize"])


def usual(quantize, names=USUAL):
    """The first of these formats that the quantizer is made for."""
    return FORMATS[next(n for n in [*names, *FORMATS] if takes(quantize, FORMATS[n]))]


def solve(quantize, weight, stats):
    return quantize(weight, usual(quantize), stats)


@with_each(FORMATS)
def test_codes_fit_the_grid_and_survive_storage(quantize, name):
    weight, stats = problem()
    q = quantize(weight, FORMATS[name], stats).weight
    assert q.format == FORMATS[name] and q.shape == weight.shape
    assert int(q.codes.max()) < 2 ** FORMATS[name].grid.bits
    assert q.codes.is_contiguous() and q.dequantize().isfinite().all()
    stored = unpack(pack(q), FORMATS[name], tuple(weight.shape))
    assert_equal(stored, q)
    assert torch.equal(stored.dequantize(), q.dequantize())


def test_arguments_are_left_alone(quantize):
    weight, stats = problem()
    stats = with_choice(quantize, weight, usual(quantize), stats)
    given = [weight, *(value for value in vars(stats).values() if isinstance(value, torch.Tensor))]
    before = [value.clone() for value in given]
    quantize(weight, usual(quantize), stats)
    assert all(map(torch.equal, before, given))


def test_the_same_call_gives_the_same_bits(quantize):
    """Also where what it derives from the statistics is there already."""
    weight, stats = problem()
    first, again, anew = (solve(quantize, weight, s).weight for s in (stats, stats, problem()[1]))
    assert_equal(first, again)
    assert_equal(first, anew)


@with_each([name for name, f in FORMATS.items() if f.rows_independent])
def test_rows_are_independent(quantize, name):
    """A scale that is itself quantized is too, as long as its groups lie within a row."""
    weight, stats = problem(rows=64)
    stats = with_choice(quantize, weight, FORMATS[name], stats)
    whole = quantize(weight, FORMATS[name], stats)
    parts = [quantize(weight[i : i + 32], FORMATS[name], stats.rows(i, i + 32)) for i in (0, 32)]
    joined = parts[0].join(parts[1:])
    assert_equal(joined.weight, whole.weight)
    assert torch.equal(joined.dequantize(), whole.dequantize())


def test_the_order_of_rows_does_not_matter(quantize):
    weight, stats = problem()
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))
    a = solve(quantize, weight, stats).dequantize()[order]
    b = solve(quantize, weight[order], reordered(stats, order)).dequantize()
    assert torch.equal(a, b)


@with_each(["W3A16_g64_asym", "W2A16_g32", "W4A16", "W8A8", *USUAL])
def test_zero_weight_stays_zero(quantize, name):
    weight, stats = problem()
    assert (quantize(weight * 0, FORMATS[name], stats).dequantize() == 0).all()


@with_each(GROUPED)
def test_ragged_group_is_refused(quantize, name):
    weight, stats = problem(columns=80)
    with pytest.raises(FormatError, match="80 is not a multiple of group_size 32"):
        quantize(weight, FORMATS[name], stats)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(quantize, bad):
    weight, stats = problem()
    weight[3, 7] = bad
    with pytest.raises(NumericalError, match="NaN or Inf"):
        solve(quantize, weight, stats)


def test_what_it_needs_is_what_it_reads(quantize):
    weight, stats = problem()
    given = {name: getattr(stats, name) for name in quantize.needs}
    enough = Stats(tokens=stats.tokens, samples=stats.samples, **given)
    assert_equal(solve(quantize, weight, enough).weight, solve(quantize, weight, stats).weight)
    if "gram" in quantize.needs:
        with pytest.raises(NumericalError, match="needs calibration data"):
            whole(quantize, weight, usual(quantize), Stats(), Serial())


def declared_loss(quantize, error, stats):
    """What the quantizer says it lowers."""
    if "gram" in quantize.needs:
        return output_loss(error, stats)
    if isinstance(quantize, SqueezeLLM):
        return (stats.squared_gradient * error.square()).sum()
    return error.abs().pow(getattr(quantize, "p", 2)).sum()


@with_each(FORMATS)
def test_not_worse_than_rounding_on_the_loss_it_declares(quantize, name):
    weight, stats = problem()
    if isinstance(quantize, QoQ):  # by default it searches nothing, and rounds twice
        quantize = replace(quantize, clip="mse")
    loss = lambda q: declared_loss(quantize, q.dequantize() - weight, stats)
    rtn = loss(round_to_nearest(weight, FORMATS[name]))
    assert loss(quantize(weight, FORMATS[name], stats)) <= rtn * (1 + 1e-6)


def test_a_row_of_one_column_and_a_column_of_one_row(quantize):
    if not any(takes(quantize, FORMATS[name]) for name in OF_ROWS):
        pytest.skip("made for groups of several weights")
    for rows, columns in [(1, 32), (5, 1)]:
        weight, stats = problem(rows=rows, columns=columns)
        assert quantize(weight, usual(quantize, OF_ROWS), stats).dequantize().shape == (
            rows,
            columns,
        )


def test_it_says_where_it_comes_from(quantize):
    assert quantize.source and quantize.needs <= {field.name for field in fields(Stats)}


@pytest.mark.parametrize(
    "quantize", [name for name in QUANTIZERS if isinstance(QUANTIZERS[name](), Adds)], indirect=True
)
def test_what_it_adds_is_known_before(quantize):
    """To the byte: `check` counts it."""
    weight, stats = problem()
    format = usual(quantize)
    made = whole(quantize, weight, format, stats, Serial())
    added = sum(part.nbytes for part in pack_corrections(made.corrections).values())
    assert added == quantize.added_bytes(tuple(weight.shape), format) > 0
