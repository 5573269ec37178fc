"""Gradients block by block equal the gradients of the whole model, whoever computes them how."""

import pytest
import torch
from torch import nn

from pennyweight.core import DataError, NumericalError, Progress, Stats
from pennyweight.model import backward
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.workers import start_workers
from pennyweight.observe.gradient import GRADIENT_FIELDS
from pennyweight.pipeline import gradients as module
from pennyweight.pipeline.gradients import FOLDER, Gradients
from pennyweight.pipeline.plan import Plan, Task
from pennyweight.pipeline.survey import survey
from tests.end_to_end.models import build, save
from tests.reference.gradients import weight_gradients

FAMILIES = ("llama", "gemma2", "gpt2", "opt", "mixtral", "qwen3_moe", "deepseek_v3")
SAMPLES = 6


@pytest.fixture(autouse=True)
def needy(monkeypatch):
    """Plans whose every task needs both gradient fields, whatever quantizers there are."""
    monkeypatch.setattr(Plan, "needs", lambda self, task: GRADIENT_FIELDS)


def rows(tokens: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 128, (SAMPLES, tokens), generator=generator)


def make(source, folder, workers, ids=None, **changes) -> Gradients:
    seen = survey(Skeleton.build(Checkpoint.open(source)))
    tasks = tuple(Task(tensor=s.tensor, scheme="W4A16", quantizer="rtn") for s in seen.sites)
    values = {"model": str(source), "fingerprint": "", "dtype": "float32", "compute": "float32"}
    plan = Plan(**values | changes, seed=0, calibrate=None, tasks=tasks)
    ids = rows() if ids is None else ids
    return Gradients(
        plan=plan, survey=seen, folder=folder / FOLDER, rows=ids, workers=workers,
        progress=Progress(),
    )  # fmt: skip


def found(source, folder, threads=2, **changes) -> dict[str, Stats]:
    with start_workers(threads) as workers:
        made = make(source, folder, workers, **changes)
        made.compute([0, 1])
        return {site.tensor: made.of(site, Stats()) for site in made.survey.sites}


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_gradients_of_the_whole_model(family, tmp_path, monkeypatch):
    monkeypatch.setattr(backward, "HEAD_TOKENS", 5)  # 11 predictions in three parts
    source = save(build(family), tmp_path / "source")
    blockwise, skeleton = found(source, tmp_path), Skeleton.build(Checkpoint.open(source))
    expected = weight_gradients(skeleton, rows())
    assert blockwise.keys() <= expected.keys()
    for tensor, stats in blockwise.items():
        for name, total in expected[tensor].items():
            error = (getattr(stats, name).double() - total).norm()
            # float32 all the way; the oracle sums in float64 what float32 autograd gives
            assert error <= 1e-5 * total.norm(), (tensor, name)


def test_threads_and_interruptions_change_no_bit(tmp_path, monkeypatch):
    source = save(build("mixtral"), tmp_path / "source")
    (tmp_path / "one").mkdir()
    (tmp_path / "three").mkdir()
    expected = found(source, tmp_path / "one", threads=1)
    original, calls = module.back, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:  # in the first block, after the second block is a file
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(module, "back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        found(source, tmp_path / "three", threads=3)
    for tensor, stats in found(source, tmp_path / "three", threads=3).items():
        assert len(calls) == 5
        assert torch.equal(stats.abs_gradient, expected[tensor].abs_gradient)
        assert torch.equal(stats.squared_gradient, expected[tensor].squared_gradient)


def test_only_the_results_stay(tmp_path):
    found(save(build("llama"), tmp_path / "source"), tmp_path)
    names = sorted(file.name for file in (tmp_path / FOLDER).iterdir())
    assert names == ["block_00000.safetensors", "block_00001.safetensors"]


def test_an_expert_that_no_token_reached_has_gradient_zero_and_no_samples(tmp_path):
    model = build("mixtral", num_experts_per_tok=1)
    with torch.no_grad():
        for layer in model.model.layers:
            gate = layer.mlp.gate.weight
            gate[1], gate[2:] = -gate[0], 0
    stats = found(save(model, tmp_path / "source"), tmp_path)
    unseen = {name: one for name, one in stats.items() if ".experts.3." in name}
    assert len(unseen) == 6
    for one in unseen.values():
        assert one.samples == one.tokens == 0 and not one.abs_gradient.any()
    attention = stats["model.layers.0.self_attn.q_proj.weight"]
    assert attention.samples == SAMPLES and attention.tokens == SAMPLES * 12


def test_half_precision_passes_are_summed_in_float32(tmp_path):
    source = save(build("llama"), tmp_path / "source")
    (tmp_path / "half").mkdir()
    exact, half = found(source, tmp_path), found(source, tmp_path / "half", compute="bfloat16")
    for tensor, stats in half.items():
        total = exact[tensor].abs_gradient
        assert stats.abs_gradient.dtype is torch.float32
        # bfloat16 holds 8 bits; two blocks of about ten roundings each
        assert (stats.abs_gradient - total).norm() < 20 * 2**-8 * total.norm()


def test_one_token_predicts_nothing(tmp_path):
    source = save(build("llama"), tmp_path / "source")
    with start_workers(1) as workers, pytest.raises(DataError, match="at least 2 tokens"):
        make(source, tmp_path, workers, rows(tokens=1)).compute([0])


def test_a_gradient_that_is_no_number_is_an_error_with_its_block(tmp_path):
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(1e30)
        model.model.layers[1].mlp.up_proj.weight.fill_(1e30)
    source = save(model, tmp_path / "source")
    with start_workers(1) as workers, pytest.raises(NumericalError, match=r"layers\.1.*NaN or Inf"):
        make(source, tmp_path, workers).compute([0, 1])


def test_a_linear_that_is_used_twice_adds_both_uses():
    linear, other = nn.Linear(4, 4), nn.Linear(4, 4)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.other = linear, other

        def forward(self, hidden):
            return self.linear(self.linear(hidden)) + self.other(torch.ones(3, 4))

    block = Twice().requires_grad_(False)
    hidden, dy = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    sample = backward.Sample(hidden, [((), {})])
    with start_workers(1) as workers:
        (passed,) = backward.back(0, block, ["linear", "other"], [(sample, dy)], workers)
    block.requires_grad_(True)
    leaf = hidden.clone().requires_grad_()
    (block(leaf) * dy).sum().backward()
    for name, part in block.named_children():
        x, gradient = module_pair(passed.calls[name])
        assert torch.allclose(gradient.T @ x, part.weight.grad, atol=1e-5)
    assert torch.allclose(passed.gradient, leaf.grad, atol=1e-6)


def module_pair(calls):
    return torch.cat([call.x for call in calls]), torch.cat([call.dy for call in calls])
