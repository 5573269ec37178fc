"""Signed steps on the rounding of weights: one step by hand, where it starts, what it may reach."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from pennyweight.core import FormatError, Quantized, RecipeError, Serial, Stats, UnsupportedError
from pennyweight.core.correction import LowRank
from pennyweight.formats.rounding import fit as fit_range
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.model.capture import Sample
from pennyweight.model.workers import start_workers
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import make_trainer
from pennyweight.quantize.gptq import GPTQ
from pennyweight.train import signround
from pennyweight.train.base import Given, Start
from pennyweight.train.learned_range import starting_fraction
from pennyweight.train.loop import Descent, Stage, fit
from pennyweight.train.signed import SignDescent
from pennyweight.train.signround import SignRound
from pennyweight.train.straight import StraightLinear, Tape
from tests.end_to_end.models import build, contents, make_recipe, save, save_tokens
from tests.reference import sign_rounding as reference
from tests.train.test_loop import problem

ASYMMETRIC = parse_scheme("W2A16_asym", torch.float32).weight
SYMMETRIC = parse_scheme("W3A16", torch.float32).weight


class Alone(nn.Module):
    """A block of one linear."""

    def __init__(self, weight):
        super().__init__()
        self.only = nn.Linear(*reversed(weight.shape), bias=False)
        self.only.weight = nn.Parameter(weight.clone(), requires_grad=False)

    def forward(self, hidden):
        return self.only(hidden)


def alone(format, seed=0, rows=3, width=8, tokens=4):
    """(stage, what the trainer is given, inputs, targets) of one linear that was clipped, two
    samples."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator)
    inputs = [torch.randn(1, tokens, width, generator=generator) for _ in range(2)]
    block, tape = Alone(weight), Tape()
    targets = [block(x) for x in inputs]
    scale, zero_point = fit_range(weight, format)
    clipped = round_to_nearest(weight, format, 0.6 * scale, zero_point)
    start = Start(weight=weight, format=format, quantized=Quantized(weight=clipped))
    block.only = StraightLinear(block.only, "only", tape)
    stage = Stage(
        name="alone", index=0, module=block, linears={"only": block.only}, tape=tape,
        samples=[Sample(x, [((), {})]) for x in inputs], targets=targets, workers=Serial(),
    )  # fmt: skip
    given = Given(
        index=0, depth=1, seed=0, name="alone", linears={"only": start}, vectors={}, dtypes={}
    )
    return stage, given, inputs, targets


@pytest.mark.parametrize("format", [ASYMMETRIC, SYMMETRIC], ids=lambda one: one.name)
@pytest.mark.parametrize("seed", range(4))
def test_one_step_by_hand(format, seed):
    stage, given, inputs, targets = alone(format, seed)
    trainer = SignRound(steps=10, start="nearest")
    learning = trainer(given)
    values = {name: value.clone() for name, value in learning.start.items()}
    Descent(stage, learning, trainer, values).step([0])
    made = given.linears["only"].quantized.weight
    slopes = reference.slopes(
        given.linears["only"].weight.tolist(), made.scale[:, 0].tolist(),
        None if format.symmetric else made.zero_point[:, 0].tolist(),
        inputs[0][0].tolist(), targets[0][0].tolist(),
        levels=int(format.grid.highest), middle=format.grid.middle,
    )  # fmt: skip
    moved = values["only.offset.0"]
    assert moved.tolist() == [
        [pytest.approx(-0.1 * reference.sign(g)) for g in row] for row in slopes.offset
    ]
    for factor, found in (("only.high", slopes.high), ("only.low", slopes.low)):
        if found:  # a symmetric group has one factor
            expected = [1 - 0.1 * reference.sign(g) for g in found]
            assert values[factor][:, 0].tolist() == pytest.approx(expected)
    signs = {reference.sign(g) for row in slopes.offset for g in row}
    assert signs == {-1, 0, 1}  # some weights are too far beyond the codes to follow


def test_rates_fall_to_zero_in_a_line():
    value = torch.zeros(3)
    descent = SignDescent({"v": value}, {"v": 0.25}, steps=4)
    for _ in range(6):
        value.grad = torch.tensor([1e-9, -7.0, 0.0])
        descent.step()
        descent.zero_grad()
    # 0.25 (1 + 3/4 + 1/2 + 1/4), then nothing
    assert value.tolist() == [-0.625, 0.625, 0.0] and value.grad is None


@pytest.mark.parametrize(("steps", "per_pass"), [(5, [3, 2]), (6, [3, 3]), (0, [])])
def test_it_takes_so_many_steps_and_no_more(steps, per_pass, monkeypatch):
    stage, given = problem()
    taken, step = [], Descent.step

    def counted(self, batch):
        taken.append(batch)
        return step(self, batch)

    monkeypatch.setattr(Descent, "step", counted)
    trainer = SignRound(steps=steps, batch=2)
    fitted = fit(stage, trainer(given), trainer, seed=0)
    assert [len(batch) for batch in taken] == [2, 2, 1, 2, 2, 1][:steps]
    assert len(fitted.errors) == 1 + len(per_pass)


@pytest.mark.parametrize("start", ["codes", "nearest"])
def test_parameters_stay_in_their_bounds(start):
    stage, given = problem()
    trainer = SignRound(steps=12, rate=20.0, range_rate=20.0, start=start)
    learning = trainer(given)
    values = {name: value.clone() for name, value in learning.start.items()}
    descent = Descent(stage, learning, trainer, values)
    for _ in range(12):
        descent.step([0, 1])
    offsets = torch.cat([value.flatten() for name, value in values.items() if "offset" in name])
    assert offsets.abs().max() == 0.5
    factors = torch.cat([v.flatten() for n, v in values.items() if "offset" not in n])
    assert factors.min() == 0.5 and factors.max() <= 1 + 1e-3  # stored scales are rounded


def gptq_start(name, rows=24, width=64):
    generator = torch.Generator().manual_seed(1)
    weight = 0.05 * torch.randn(rows, width, generator=generator)
    x = torch.randn(256, width, generator=generator) @ torch.randn(
        width, width, generator=generator
    )
    format = parse_scheme(name).weight
    stats = Stats(gram=x.T @ x / len(x))
    return Start(weight=weight, format=format, quantized=GPTQ()(weight, format, stats))


def given_one(start):
    return Given(
        index=0, depth=1, seed=0, name="block", linears={"up": start}, vectors={}, dtypes={}
    )


@pytest.mark.parametrize("name", ["W2A16_g32_asym", "W4A16_g32_asym", "W3A16_g32", "MXFP4A16"])
def test_it_starts_at_the_codes_of_the_rule_or_at_the_nearest(name):
    start = gptq_start(name)
    made = start.quantized.weight
    nearest = round_to_nearest(start.weight, start.format, made.scale, made.zero_point)
    assert (nearest.codes != made.codes).float().mean() > 0.1  # else this shows nothing
    for option, expected in (("codes", made), ("nearest", nearest)):
        learning = SignRound(start=option)(given_one(start))
        found = learning.weights["up"].quantize(start.weight, learning.start).weight
        assert torch.equal(found.dequantize(), expected.dequantize())


def test_weights_that_were_rounded_to_nearest_start_where_they_were():
    start = gptq_start("W3A16_g32_asym")
    made = start.quantized.weight
    nearest = round_to_nearest(start.weight, start.format, made.scale, made.zero_point)
    same = nearest.codes == made.codes
    moved = signround.beside_codes(start)
    assert torch.equal(moved[same], start.weight[same])
    steps = (moved - made.dequantize()).abs() / made.scale.repeat_interleave(32, 1)
    torch.testing.assert_close(steps[~same], torch.full_like(steps[~same], 0.49), rtol=1e-3, atol=0)


def test_a_clipped_range_can_grow_back_to_the_full_one():
    start = gptq_start("W2A16_g32_asym")
    least, largest = SignRound()(given_one(start)).bounds["up.high"]
    fraction = starting_fraction(start)
    assert (fraction < 0.95).any()
    torch.testing.assert_close(largest, 1 / fraction.clamp(min=0.5))
    assert (least == 0.5).all()


def test_threads_change_nothing_and_it_learns(monkeypatch):
    monkeypatch.setattr(signround, "ROWS", 16)  # several tasks per linear
    found = []
    for threads in (1, 2):
        with start_workers(threads) as workers:
            stage, given = problem(workers, samples=9)
            before = stage.error()
            trainer = SignRound(steps=16, batch=4)
            found.append(fit(stage, trainer(given), trainer, seed=0))
    assert found[0].errors == found[1].errors and min(found[0].errors) < 0.8 * before
    assert all(torch.equal(found[0].values[n], v) for n, v in found[1].values.items())
    assert "up.offset.3" in found[0].values


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return save(build("llama"), folder / "model"), save_tokens(folder, samples=9)


@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
def test_blocks_are_no_worse_than_the_rules_left_them(llama, quantizer, tmp_path):
    train = {"name": "signround", "options": {"steps": 8, "batch": 4}}
    rule = {"scheme": "W2A16_g32_asym", "quantizer": quantizer}
    recipe = make_recipe(*llama, rule, train=[train])
    result = quantize(recipe, tmp_path / "out", threads=1)
    lines = json.loads((result.path / "proof.json").read_text())["transforms"]
    for line in lines:
        assert "signround: " in line
        if "left as it is" not in line:
            before, _, after = line.partition(" error ")[2].split()[:3]
            assert float(after) < float(before)
    assert len(lines) == 2 and (quantizer == "gptq" or "left" not in "".join(lines))
    if quantizer == "rtn":
        again = quantize(recipe, tmp_path / "again", threads=2)
        assert contents(again.path) == contents(result.path)


@pytest.mark.parametrize("name", ["W3A16_table", "W4A16_higgs_g128", "NVFP4A16", "W4A8_dgq_g64"])
def test_formats_without_a_plain_scale_are_refused(name):
    with pytest.raises(FormatError, match=r"ranges are learned for formats|table per row"):
        SignRound().check_format(parse_scheme(name).weight)


def test_bad_input():
    for options, message in (
        ({"start": "rules"}, r"signround.start: .*'codes' or 'nearest'"),
        ({"batch": 0}, "signround.batch: expected 1 or more, found 0"),
        ({"steps": -1}, "signround.steps: expected a number of 0 or more, found -1"),
        ({"step": 9}, "unknown key 'step'; did you mean 'steps'"),
    ):
        with pytest.raises(RecipeError, match=message):
            make_trainer("signround", options, "train.0")
    start = gptq_start("W3A16_g32")
    rows, cols = start.quantized.dequantize().shape
    low_rank = LowRank(left=torch.zeros(rows, 1), right=torch.zeros(1, cols))
    beside = replace(start.quantized, corrections=(low_rank,))
    with pytest.raises(UnsupportedError, match=r"block.up: signround chooses codes anew.*gptq"):
        SignRound()(given_one(replace(start, quantized=beside)))
