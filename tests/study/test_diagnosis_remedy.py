"""Each finding leads to the remedy for it, with a recipe that can be read."""

import tomllib

import pytest
import torch

from pennyweight.evaluate import Interval
from pennyweight.pipeline.recipe import parse_recipe
from pennyweight.study.diagnosis.errors import rounds_alone
from pennyweight.study.diagnosis.pair import Numbers
from pennyweight.study.diagnosis.remedy import Findings, remedies

W2, W4 = (Numbers(name=f"W{n}A16_g128", bits=n, group_size=128) for n in (2, 4))
W8A8 = Numbers(name="W8A8_static", bits=8, activation=True, static=True)
GPTQ = Numbers(name="gptq W4 g32", bits=4, group_size=32)


def at(value: float) -> Interval:
    return Interval(low=value, value=value, high=value)


def findings(**changes) -> Findings:
    values = {
        "within": False, "target": "kl<=0.01", "whole": at(1.0), "rest": at(0.0),
        "weights_only": None, "activations_only": None, "cure": ("a", "b", "c"),
        "tensors": ("a.weight", "b.weight", "c.weight"), "share": 1.0, "out_of_order": {},
        "numbers": {f"{n}.weight": W4 for n in "abc"}, "outside": (), "rewritten": False,
    }  # fmt: skip
    return Findings(**values | changes)


def first(**changes):
    return remedies(findings(**changes))[0]


def test_within_the_target_nothing_is_to_be_done():
    found = remedies(findings(within=True, cure=(), tensors=()))
    assert [each.what for each in found] == ["Nothing needs to be done."]


def test_few_tensors_get_more_bits():
    one = {"cure": ("a",), "tensors": ("a.weight",), "share": 0.05}
    found = first(**one, numbers={"a.weight": W2, "b.weight": W4})
    assert found.what == "More bits for a."
    assert tomllib.loads(found.recipe)["rule"] == [{"match": "a.weight", "scheme": "W8A16_g128"}]
    eight = Numbers(name="W8A16", bits=8)
    found = first(**one, numbers={"a.weight": eight, "b.weight": W4})
    assert tomllib.loads(found.recipe)["rule"][0]["scheme"] == "W16A16"


def test_what_lies_outside_comes_first():
    found = first(outside=("lm_head.weight",), rest=at(0.9), cure=None, tensors=())
    assert found.what == "Keep lm_head as in the reference."
    assert "0.9 of 1 nats" in found.why


def test_inputs_that_cost_more_than_weights():
    numbers = {"a.weight": W8A8}
    shares = {"weights_only": at(0.1), "activations_only": at(0.9), "numbers": numbers}
    found = first(**shares, cure=None, tensors=())
    assert "W8A8 instead of W8A8_static" in found.what and "alone cost 0.9" in found.why
    by_token = Numbers(name="W8A8", bits=8, activation=True)
    found = first(**shares | {"numbers": {"a.weight": by_token}}, cure=None, tensors=())
    assert tomllib.loads(found.recipe) == {"transform": [{"name": "smoothquant"}]}
    shares |= {"weights_only": at(0.9), "activations_only": at(0.1)}
    assert "inputs" not in first(**shares, cure=None, tensors=()).what


def test_plain_rounding_is_told_from_error_feedback():
    out_of_order = {f"{n}.weight": 0.0 for n in "abc"}
    assert "gptq instead of rounding" in first(out_of_order=out_of_order).what
    out_of_order = {f"{n}.weight": 0.2 for n in "abc"}
    whats = [each.what for each in remedies(findings(out_of_order=out_of_order))]
    assert whats[0].startswith("Smaller groups for a, b, c: 32")
    assert whats[-1].startswith("More than 4 bits for all linears")
    numbers = dict.fromkeys(out_of_order, GPTQ)
    assert "act-order" in first(out_of_order=out_of_order, numbers=numbers).what


@pytest.mark.parametrize("numbers", [W2, W4, W8A8, GPTQ, Numbers(name="")])
@pytest.mark.parametrize("order", [0.0, 0.2])
@pytest.mark.parametrize("few", [False, True])
def test_every_recipe_is_one(numbers, order, few):
    """Whatever is found there is something to try, and what it prints can be run."""
    tensors = [f"{n}.weight" for n in "abcdefghi"]
    chosen = tuple(tensors[:1] if few else tensors)
    found = remedies(
        findings(
            numbers=dict.fromkeys(tensors, numbers), out_of_order=dict.fromkeys(tensors, order),
            tensors=chosen, cure=chosen, share=0.1 if few else 1.0,
        )
    )  # fmt: skip
    assert found
    for each in found:
        parse_recipe({"model": "pylm", **tomllib.loads(each.recipe)}, "recipe")
        assert each.what.endswith(".") and each.why.endswith(".")


def test_the_order_of_weights_tells_how_they_were_rounded():
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 64, generator=random)
    scale = weight.view(8, 4, 16).abs().amax(2).repeat_interleave(16, 1) / 7
    alone = (weight / scale).round() * scale
    assert rounds_alone(weight, alone) == 0.0
    assert rounds_alone(weight, alone.clamp(-1, 1)) == 0.0  # clipping keeps the order too
    moved = ((weight + 0.5 * scale * torch.randn(8, 64, generator=random)) / scale).round() * scale
    assert rounds_alone(weight, moved) > 0.05
    # by hand: of 15 steps of one run one goes down
    run = torch.arange(16.0)[None]
    swapped = run.clone()
    swapped[0, 3], swapped[0, 4] = 4.0, 3.0
    assert rounds_alone(run, swapped) == pytest.approx(1 / 15)
    assert rounds_alone(torch.ones(1, 4), torch.ones(1, 4)) == 0.0  # too narrow for a run
