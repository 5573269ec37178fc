"""The trainer descends, on any number of threads to the same numbers, and stops at what is none."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from pennyweight.core import NumericalError, Quantized, Serial
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.model.capture import Sample
from pennyweight.model.workers import start_workers
from pennyweight.train import learned_range
from pennyweight.train.base import Given, Start
from pennyweight.train.loop import Descent, Stage, batches, fit
from pennyweight.train.loss import LOSSES
from pennyweight.train.norm_tweaking import NormTweaking
from pennyweight.train.omniquant import OmniQuant
from pennyweight.train.straight import StraightLinear, Tape

WIDTH, FORMAT = 32, parse_scheme("W2A16_g16_asym").weight


class Toy(nn.Module):
    """A norm's gain, two linears and the way around them."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden):
        return hidden + self.down(torch.relu(self.up(self.norm(hidden))))


def problem(workers=None, samples=6, tokens=5):
    """(stage of a Toy at two bits, what the trainers are given)."""
    torch.manual_seed(0)
    toy = Toy().requires_grad_(False)
    states = [torch.randn(1, tokens, WIDTH) for _ in range(samples)]
    targets = [toy(state) for state in states]
    originals = {name: toy.get_submodule(name).weight.clone() for name in ("up", "down")}
    tape, linears = Tape(), {}
    starts = {
        name: Start(
            weight=weight, format=FORMAT,
            quantized=Quantized(weight=round_to_nearest(weight, FORMAT)),
        )
        for name, weight in originals.items()
    }  # fmt: skip
    for name in originals:
        linears[name] = StraightLinear(toy.get_submodule(name), name, tape)
        linears[name].weight.copy_(starts[name].quantized.dequantize())
        setattr(toy, name, linears[name])
    vectors = {"norm.weight": toy.norm.weight.clone(), "norm.bias": toy.norm.bias.clone()}
    stage = Stage(
        name="toy", index=0, module=toy, linears=linears, tape=tape, targets=targets,
        samples=[Sample(state, [((), {})]) for state in states], workers=workers or Serial(),
    )  # fmt: skip
    given = Given(
        index=0, depth=1, seed=0, name="toy", linears=starts, vectors=vectors,
        dtypes=dict.fromkeys(vectors, torch.float32),
    )  # fmt: skip
    return stage, given


def test_the_gradient_is_that_of_the_whole_loss(monkeypatch):
    """Formed in pieces of 16 rows, it is what autograd says of the whole computation."""
    monkeypatch.setattr(learned_range, "ROWS", 16)
    stage, given = problem()
    trainer = OmniQuant(clip_rate=0.1)
    learning = trainer(given)
    values = {name: value.clone() for name, value in learning.start.items()}
    descent = Descent(stage, learning, trainer, values)
    seen = {}
    monkeypatch.setattr(descent.optimizer, "step", lambda: seen.update(
        {name: value.grad.clone() for name, value in values.items()}))  # fmt: skip
    loss = descent.step([0, 2])
    leaves = {name: value.clone().requires_grad_() for name, value in learning.start.items()}
    with torch.enable_grad():
        toy, total = stage.module, 0.0
        weight = {n: one.rows(leaves, 0, len(one.start.weight))
                  for n, one in learning.weights.items()}  # fmt: skip
        for index in (0, 2):
            hidden = stage.samples[index].hidden
            inner = torch.relu(toy.norm(hidden) @ weight["up"].T + toy.up.bias)
            out = hidden + inner @ weight["down"].T + toy.down.bias
            total = total + (out - stage.targets[index]).square().mean() / 2
    unit = sum(stage.targets[i].square().mean() for i in stage.learned_from) / 5
    expected = torch.autograd.grad(total / unit, list(leaves.values()))
    assert loss == pytest.approx((total / unit).item(), rel=1e-5)
    for name, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(seen[name], gradient, rtol=1e-4, atol=1e-7)


def test_the_first_step_of_adam_moves_each_parameter_by_its_rate():
    stage, given = problem()
    trainer = OmniQuant(clip_rate=0.25)
    learning = trainer(given)
    values = {name: value.clone() for name, value in learning.start.items()}
    Descent(stage, learning, trainer, values).step([0])
    moved = (values["down.high"] - learning.start["down.high"]).abs()
    assert ((moved - 0.25).abs() < 1e-4).all()  # rate * g / (|g| + eps), however small g is


@pytest.mark.parametrize("trainer", [OmniQuant(epochs=8, clip_rate=0.05),
                                     NormTweaking(epochs=8, loss="output", rate=0.01)])  # fmt: skip
def test_it_learns_and_what_it_keeps_is_its_best_epoch(trainer):
    stage, given = problem()
    before = stage.error()
    fitted = fit(stage, trainer(given), trainer, seed=0)
    assert len(fitted.errors) == 9 and fitted.errors[fitted.epoch] == min(fitted.errors)
    assert min(fitted.errors) < 0.95 * before
    again = Descent(stage, trainer(given), trainer, fitted.values)
    again.place()
    assert stage.error() == min(fitted.errors)


def test_rates_that_ruin_everything_leave_the_start():
    stage, given = problem()
    trainer = OmniQuant(epochs=3, clip_rate=1e4)
    fitted = fit(stage, trainer(given), trainer, seed=0)
    assert fitted.epoch == 0
    assert all(torch.equal(fitted.values[n], v) for n, v in trainer(given).start.items())


def test_threads_change_nothing():
    found = []
    for threads in (1, 3):
        with start_workers(threads) as workers:
            stage, given = problem(workers, samples=9)
            trainer = OmniQuant(epochs=2, batch=4)
            found.append(fit(stage, trainer(given), trainer, seed=0))
    assert found[0].errors == found[1].errors
    assert all(torch.equal(found[0].values[n], v) for n, v in found[1].values.items())


def test_the_seed_decides_the_order():
    errors = []
    for seed in (0, 0, 1):
        stage, given = problem()
        trainer = OmniQuant(epochs=2)
        errors.append(fit(stage, trainer(given), trainer, seed).errors)
    assert errors[0] == errors[1] != errors[2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_and_says_where(bad):
    stage, given = problem()
    targets = list(stage.targets)
    targets[1] = torch.full_like(targets[1], bad)
    trainer = OmniQuant(epochs=2)
    with pytest.raises(NumericalError, match=r"toy: epoch 1, step \d: the loss is nan.*lower lear"):
        fit(replace(stage, targets=targets), trainer(given), trainer, seed=0)


def test_a_parameter_that_is_no_number_stops_too():
    @dataclass(frozen=True)
    class Steep:
        """A weight whose value is finite and whose slope is not."""

        reads: tuple[str, ...] = ("w",)
        task_rows: int = WIDTH

        def rows(self, values, start, stop):
            return values["w"].sqrt().expand(2 * WIDTH, WIDTH)[start:stop]

        def quantize(self, weight, values):
            raise NotImplementedError

    stage, given = problem()
    trainer = OmniQuant(epochs=1)
    learning = replace(trainer(given), start={"w": torch.zeros(1, 1)}, rates={"w": 1.0},
                       weights={"up": Steep()})  # fmt: skip
    with pytest.raises(NumericalError, match="toy: epoch 1, step 1: the gradient of w holds NaN"):
        fit(stage, learning, trainer, seed=0)


def test_samples_are_held_out_and_the_others_seen_once_an_epoch():
    stage, _ = problem(samples=17)
    assert stage.judged_by == [7, 15] and len(stage.learned_from) == 15
    assert replace(stage, held_out=False).learned_from == list(range(17))
    stage, _ = problem(samples=2)
    assert stage.judged_by == [1] and stage.learned_from == [0]
    generator = torch.Generator().manual_seed(0)
    seen = list(batches([3, 5, 7, 9, 11], 2, generator))
    assert [len(batch) for batch in seen] == [2, 2, 1]
    assert sorted(sum(seen, ())) == [3, 5, 7, 9, 11]


def test_losses_by_hand():
    out, target = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]]), torch.tensor([[[1.0, 1.0], [1.0, 1.0]]])
    assert LOSSES["output"](out, target).item() == (0 + 1 + 4 + 9) / 4
    # means 2 and 2 against 1 and 1; variances 1 and 4 against 0 and 0
    assert LOSSES["channels"](out, target).item() == ((1 + 1) + (1 + 16)) / 2
