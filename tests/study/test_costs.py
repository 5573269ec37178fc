"""Costs of units, the quantization ratio, and files of measured costs."""

import json

import pytest

from pennyweight.core import RecipeError
from pennyweight.study.planning.candidate import figures, summed_loss
from pennyweight.study.planning.costs import (
    code_bits,
    is_low,
    measured_costs,
    priced,
    ratio_costs,
    size_costs,
)
from tests.study.tables import table, unit

SHAPES = {"q.weight": (64, 64), "k.weight": (32, 64), "down.weight": (64, 96)}
FUSED = unit("qk", 6144, tensors=("q.weight", "k.weight"))


def test_bytes_are_of_everything_stored():
    assert size_costs().of(unit("q"), "W4A16_g32") == 4.5 * 1000 / 8


def test_the_ratio_costs_what_stays_high():
    costs = ratio_costs()
    assert [costs.of(unit("q"), s) for s in ("W4A16_g32", "W8A16_g32", "W16A16")] == [0, 1e3, 1e3]
    assert ratio_costs(low_bits=8).of(unit("q"), "W8A16_g32") == 0


@pytest.mark.parametrize(
    ("scheme", "bits", "low"),
    [
        ("W4A16_g128", 4, True), ("W8A16", 8, False), ("W16A16", 16, False),
        ("MXFP4A16", 4, True), ("W3A16_higgs_g128", 3, True), ("W2A16_table", 2, True),
    ],
)  # fmt: skip
def test_bits_of_the_codes_alone(scheme, bits, low):
    assert code_bits(scheme) == bits and is_low(scheme) == low


def test_figures_by_hand():
    """3000 parameters in 4.5 bits and 1000 untouched: of the 4.5, half a bit is scales, which is
    3000 x 0.5 / 16 = 93.75 parameters of 16 bits."""
    both = table(unit("q", 3000), unit("down", 1000))
    found = figures({"q": "W4A16_g32", "down": "W16A16"}, both)
    assert found.size_bytes == (3000 * 4.5 + 1000 * 16) / 8
    assert found.bits_per_weight == (3000 * 4.5 + 1000 * 16) / 4000
    assert found.quantization_ratio == 0.75
    assert found.quantization_ratio_with_scales == pytest.approx(3000 / 4093.75)
    assert summed_loss({"q": "W4A16_g32", "down": "W8A16_g32"}, both) == pytest.approx(0.0101)


def write(path, costs, **changes):
    path.write_text(json.dumps({"unit": "s", "cost": costs} | changes))
    return path


def cost(shape, value, scheme="W4A16_g32"):
    return {"shape": shape, "scheme": scheme, "value": value}


def test_a_fused_product_where_it_was_measured_else_the_sum(tmp_path):
    parts = [cost([64, 64], 2.0), cost([32, 64], 1.0)]
    apart = measured_costs(write(tmp_path / "apart.json", parts), SHAPES)
    assert apart.of(FUSED, "W4A16_g32") == 3.0 and apart.unit == "s"
    together = write(tmp_path / "together.json", [*parts, cost([96, 64], 2.5)])
    assert measured_costs(together, SHAPES).of(FUSED, "W4A16_g32") == 2.5


def test_costs_in_toml(tmp_path):
    path = tmp_path / "costs.toml"
    path.write_text('unit = "s"\n[[cost]]\nshape = [64, 96]\nscheme = "W16A16"\nvalue = 1e-6\n')
    assert measured_costs(path, SHAPES).of(unit("down"), "W16A16") == 1e-6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a file of costs"),
        ('{"unit": "s"}', "cost: Field required"),
        ('{"unit": "s", "cost": [{"shape": [1], "scheme": "W8A8", "value": 1}]}', "cost.0.shape"),
        (json.dumps({"unit": "s", "cost": [cost([1, 2], -1)]}), "expected 0 or more"),
        (json.dumps({"unit": "s", "cost": [cost([1, 2], 1)] * 2}), "stand there twice"),
    ],
)
def test_files_that_are_no_costs(tmp_path, text, message):
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(RecipeError, match=message):
        measured_costs(tmp_path / "costs.json", SHAPES)


def test_a_shape_that_was_not_measured(tmp_path):
    costs = measured_costs(write(tmp_path / "costs.json", [cost([64, 64], 2.0)]), SHAPES)
    with pytest.raises(RecipeError, match=r"no cost for W4A16_g32 of shape \[32, 64\] \(qk\)"):
        costs.of(FUSED, "W4A16_g32")
    with pytest.raises(RecipeError, match="no such file"):
        measured_costs(tmp_path / "none.json", SHAPES)


def without(scheme, shape=None):
    return {"scheme": scheme, "shape": shape, "why": "no kernel"}


def test_what_no_kernel_takes_is_no_option_and_what_was_forgotten_is_an_error(tmp_path):
    """W4 has a kernel for the fused product alone; W8 was left out of one of its parts."""
    path = write(
        tmp_path / "costs.json", [cost([96, 64], 2.5), cost([64, 64], 1.0, "W16A16")],
        left_out=[without("W4A16_g32", [32, 64]), without("W8A16_g32", [32, 64]), without("W8A8")],
        measured={"machine": "this one"},
    )  # fmt: skip
    costs = measured_costs(path, SHAPES)
    assert costs.schemes == ("W4A16_g32", "W16A16")
    assert costs.offers(FUSED, "W4A16_g32") and not costs.offers(FUSED, "W8A16_g32")
    assert costs.offers(FUSED, "W16A16")  # for which there is no number: asking for it says so
    with pytest.raises(RecipeError, match="measure it, or leave the scheme out"):
        costs.of(FUSED, "W16A16")


def test_seconds_at_a_price(tmp_path):
    """3 s at 7.2 an hour are 0.006."""
    parts = [cost([64, 64], 2.0), cost([32, 64], 1.0)]
    costs = priced(measured_costs(write(tmp_path / "costs.json", parts), SHAPES), 7.2)
    assert costs.name == "cost" and costs.of(FUSED, "W4A16_g32") == pytest.approx(0.006)
    for price in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(RecipeError, match="expected a number above 0"):
            priced(measured_costs(tmp_path / "costs.json", SHAPES), price)
    micro = measured_costs(write(tmp_path / "us.json", parts, unit="us"), SHAPES)
    with pytest.raises(RecipeError, match="expected seconds"):
        priced(micro, 1.0)
