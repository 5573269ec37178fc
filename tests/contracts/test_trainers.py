"""What every registered trainer promises. A new file in train/ is tested here unasked."""

from dataclasses import replace

import pytest
import torch

from pennyweight.core import FormatError, LowRank, Quantized, Stats, UnsupportedError
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.formats.storage import pack, unpack
from pennyweight.quantize.mse_clip import MSEClip
from pennyweight.train import TRAINERS
from pennyweight.train.base import Given, Link, Start
from tests.formats.test_storage import assert_equal

SCHEMES = ("W3A16_g32_asym", "W4A16", "W4A16_tensor", "MXFP4A16", "W8A8_fp8_block")
WIDTH = 128


def start(name="W3A16_g32_asym", seed=0, clipped=False) -> Start:
    weight = 0.05 * torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed))
    format = parse_scheme(name).weight
    rounded = Quantized(weight=round_to_nearest(weight, format))
    if clipped:
        rounded = MSEClip()(weight, format, Stats())
    return Start(weight=weight, format=format, quantized=rounded)


def given(name="W3A16_g32_asym", **changes) -> Given:
    vectors = {"norm.weight": torch.rand(WIDTH) + 0.5, "up.bias": torch.rand(WIDTH)}
    link = Link(producer="norm", readers=("up",), channels=torch.arange(WIDTH), size=WIDTH)
    facts = {
        "index": 1, "depth": 4, "seed": 0, "name": "model.layers.1",
        "linears": {"up": start(name), "down": start(name, seed=1)}, "vectors": vectors,
        "dtypes": dict.fromkeys(vectors, torch.float16), "links": (link,),
    }  # fmt: skip
    return Given(**facts | changes)


@pytest.fixture(params=list(TRAINERS))
def trainer(request):
    return TRAINERS[request.param]()


def shifted(values, seed=0):
    """The parameters after some learning."""
    generator = torch.Generator().manual_seed(seed)
    return {n: v + 0.1 * torch.randn(v.shape, generator=generator) for n, v in values.items()}


@pytest.mark.parametrize("name", SCHEMES)
def test_what_is_learned_with_is_what_is_stored(trainer, name):
    facts = given(name)
    learning = trainer(facts)
    values = shifted(learning.start)
    for linear, learned in learning.weights.items():
        weight = facts.linears[linear].weight
        made = learned.quantize(weight, values)
        rows = [
            learned.rows(values, at, min(at + learned.task_rows, WIDTH))
            for at in range(0, WIDTH, learned.task_rows)
        ]
        assert torch.equal(torch.cat(rows), made.dequantize())
        format = facts.linears[linear].format
        assert_equal(unpack(pack(made.weight), format, (WIDTH, WIDTH)), made.weight)


def test_every_parameter_has_a_rate_and_is_read(trainer):
    learning = trainer(given())
    assert learning.start and learning.start.keys() == learning.rates.keys()
    assert all(rate > 0 for rate in learning.rates.values())
    read = {name for one in learning.weights.values() for name in one.reads}
    leaves = {name: value.clone().requires_grad_() for name, value in learning.start.items()}
    outs = list(learning.vectors(leaves).values())
    reached = torch.autograd.grad(
        sum(out.sum() for out in outs) + 0 * sum(leaf.sum() for leaf in leaves.values()),
        list(leaves.values()),
    )
    moved = {name for name, g in zip(leaves, reached, strict=True) if bool((g != 0).any())}
    assert read | moved == set(leaves)


def test_who_says_that_it_changes_linears_alone_does(trainer):
    learning = trainer(given())
    values = shifted(learning.start)
    elsewhere = {**learning.vectors(values), **learning.scales(values)}
    assert trainer.linears_alone == (not elsewhere)


def test_arguments_are_left_alone_and_the_result_is_the_same(trainer):
    facts, untouched = given(), given()
    a, b = trainer(facts), trainer(facts)
    assert all(torch.equal(a.start[name], b.start[name]) for name in a.start)
    for value in a.start.values():
        value.add_(1)  # what the trainer loop does
    for name, one in facts.linears.items():
        assert torch.equal(one.weight, untouched.linears[name].weight)
    assert all(torch.equal(b.start[name], trainer(facts).start[name]) for name in b.start)


def test_a_clipped_range_is_where_learning_starts(trainer):
    facts = given(linears={"up": start(clipped=True)})
    learning = trainer(facts)
    for name, learned in learning.weights.items():
        found = learned.rows(learning.start, 0, WIDTH)
        expected = facts.linears[name].quantized.dequantize()
        # Ranges at 0.982 and above start a little below where the quantizer left them.
        close = (found - expected).abs() < 1e-6
        assert close.float().mean() > 0.5


@pytest.mark.parametrize("name", ["W3A16_table", "W4A16_higgs_g128", "NVFP4A16", "W4A8_dgq_g64"])
def test_formats_are_taken_or_refused_by_name(trainer, name):
    facts = given() if "table" in name else None
    format = parse_scheme(name).weight
    try:
        trainer.check_format(format)
    except FormatError as error:
        assert format.name in str(error) or "table per row" in str(error)
        return
    assert facts is None or not trainer(facts).weights  # it learns no codes


def test_what_is_kept_beside_the_codes_is_not_lost_silently(trainer):
    part = LowRank(left=torch.ones(WIDTH, 1), right=torch.ones(1, WIDTH))
    one = start()
    beside = replace(one, quantized=replace(one.quantized, corrections=(part,)))
    facts = given(linears={"up": beside})
    try:
        learning = trainer(facts)
    except UnsupportedError as error:
        assert "model.layers.1.up" in str(error) and "use the quantizer" in str(error)
        return
    assert not learning.weights


def test_it_says_where_it_comes_from(trainer):
    assert trainer.source and trainer.__doc__
    assert trainer.epochs >= 1 and trainer.batch >= 1
