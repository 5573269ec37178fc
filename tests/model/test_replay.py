"""Reading outputs back changes no bit, and leaves every linear to run once per sample."""

import errno
import os
from collections import Counter

import pytest
import torch
from torch import nn

from pennyweight.core import CheckpointError
from pennyweight.model import stream
from pennyweight.model.adapt import UnfusedExperts
from pennyweight.model.capture import capture
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.replay import Replay
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.stream import Block
from pennyweight.model.workers import start_workers
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.survey import survey
from tests.end_to_end.models import VOCAB, build, contents, make_recipe, save, save_tokens

SAMPLES = 3
FAMILIES = ["llama", "gemma2", "phi", "opt", "gpt2", "gptj", "mixtral", "qwen2_moe", "deepseek_v3"]


def walk(path, folder):
    """All inputs that are observed, the last states, and how often each linear ran.

    As a run does, with a cheap change of every weight in the place of its quantization.
    """
    skeleton = Skeleton.build(Checkpoint.open(path))
    ids = torch.randint(3, VOCAB, (SAMPLES, 20), generator=torch.Generator().manual_seed(1))
    samples, observed = capture(skeleton, ids, torch.float32), []
    runs: Counter[tuple[int, str]] = Counter()
    linear = nn.functional.linear
    names: dict[int, tuple[int, str]] = {}
    # Held, since the id of a freed tensor may be given to another one.
    held: list[torch.Tensor] = []

    def counted(x, weight, bias=None):
        runs[names.get(id(weight), (-1, "other"))] += 1
        return linear(x, weight, bias)

    with start_workers(1) as workers, pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "linear", counted)
        for index, topology in enumerate(survey(skeleton).topologies):
            block = Block(skeleton, index, topology, torch.float32, folder)
            with block.loaded():
                for groups in topology.stages:
                    for name in topology.linears:
                        held.append(block.module.get_submodule(name).weight)
                        names[id(held[-1])] = (index, name)
                    observed += block.inputs(groups, samples, workers)
                    for name in (name for group in groups for name in group.linears):
                        weight = block.module.get_submodule(name).weight
                        weight.copy_((weight * 16).round() / 16)
                    block.settle(groups)
                block.advance(samples, workers)
    return observed, [sample.hidden for sample in samples], runs


def equal(first, second) -> bool:
    """Nests of lists of tensors, bit for bit."""
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))
    return torch.equal(first, second)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_bit_changes_and_every_linear_runs_once(family, tmp_path):
    path = save(build(family), tmp_path / "model")
    observed, hidden, runs = walk(path, None)
    folder = tmp_path / "work"
    folder.mkdir()
    found, states, fewer = walk(path, folder)
    assert equal(found, observed) and equal(states, hidden)
    assert not list(folder.iterdir())
    linears = {key: count for key, count in fewer.items() if key[0] >= 0}
    # These hand attention weights on, which are seen to be too large at the first sample.
    odd = family in ("gemma2", "gptj")
    assert max(linears.values()) == SAMPLES + odd < max(runs.values())
    assert fewer.total() < runs.total()


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_run_writes_the_same_bytes_without_it(family, tmp_path, monkeypatch):
    path = save(build(family), tmp_path / "model")
    rules = [{"match": "*.o_proj.weight", "scheme": "W8A8", "quantizer": "rtn"}, {"match": "*"}]
    rules[1] |= {"scheme": "W4A16_g32", "quantizer": "gptq"}
    recipe = make_recipe(path, save_tokens(tmp_path), *rules)
    with_it = contents(quantize(recipe, tmp_path / "with", threads=2).path)
    monkeypatch.setattr(stream, "Replay", lambda *_: None)
    assert contents(quantize(recipe, tmp_path / "without", threads=2).path) == with_it


class Linear(nn.Linear):
    """Counts how often it ran."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.runs = 0

    def forward(self, input):
        self.runs += 1
        return super().forward(input)


def toy(forward, **children) -> nn.Module:
    """A module of these children with this forward(self, x)."""
    module = type("Toy", (nn.Module,), {"forward": forward})()
    for name, child in children.items():
        module.add_module(name, child)
    return module.requires_grad_(False)


class Passes:
    """One sample through a block, pass after pass, each compared with a run of nothing else."""

    def __init__(self, block: nn.Module, linears: list[str], folder) -> None:
        self.block, self.linears = block, linears
        self.replay = Replay(block, [[name] for name in linears], folder)
        self.x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    def __call__(self, *settled: str, observing: bool = True):
        """How often each linear ran. Weights of what is settled change first, as in a run."""
        for name in settled:
            self.block.get_submodule(name).weight.mul_(0.5)
        self.replay.settle(settled)
        linears = {n: m for n, m in self.block.named_modules() if isinstance(m, Linear)}
        expected = self.block(self.x.clone())
        for linear in linears.values():
            linear.runs = 0
        with self.replay.passes(self.linears if observing else []) as begin:
            begin("sample")
            found = self.block(self.x.clone())
        assert torch.equal(found, expected)
        assert not any("forward" in vars(module) for module in self.block.modules())
        return {name: linear.runs for name, linear in linears.items()}


@pytest.fixture
def passes(tmp_path):
    """passes(block, linears): Passes in this folder, closed in the end."""
    made = []

    def make(block: nn.Module, linears: list[str]) -> Passes:
        made.append(Passes(block, linears, tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.replay.close()


def test_a_linear_is_kept_from_the_pass_after_its_stage(passes):
    run = passes(toy(lambda self, x: self.b(self.a(x)), a=Linear(), b=Linear()), ["a", "b"])
    assert run() == {"a": 1, "b": 1}
    assert run("a") == {"a": 1, "b": 1}
    assert run() == {"a": 0, "b": 1}
    assert run("b", observing=False) == {"a": 0, "b": 1}


def test_a_module_is_kept_as_a_whole_when_all_of_it_is_settled(passes):
    inner = toy(lambda self, x: (self.b(self.a(x)).relu(), None), a=Linear(), b=Linear())
    block = toy(lambda self, x: self.c(self.inner(x)[0]), inner=inner, c=Linear())
    run = passes(block, ["inner.a", "inner.b", "c"])
    assert run("inner.a") == {"inner.a": 1, "inner.b": 1, "c": 1}
    assert run("inner.b") == {"inner.a": 0, "inner.b": 1, "c": 1}
    assert run() == {"inner.a": 0, "inner.b": 0, "c": 1}


def test_what_is_read_back_may_be_changed_in_place(passes):
    block = toy(lambda self, x: self.b(self.a(x).add_(1)), a=Linear(), b=Linear())
    run = passes(block, ["a", "b"])
    for settled in (["a"], [], []):
        run(*settled)  # compares with a run that reads nothing back


def test_what_depends_on_an_unsettled_linear_is_not_kept(passes):
    """A linear that runs on both sides of another: its second output moves when the other's
    weights do."""
    block = toy(lambda self, x: self.a(self.b(self.a(x))), a=Linear(), b=Linear())
    run = passes(block, ["a", "b"])
    assert run("a") == {"a": 2, "b": 1}
    assert run("b") == {"a": 1, "b": 1}
    assert run() == {"a": 0, "b": 0}


def test_a_module_that_is_called_twice_has_two_outputs(passes):
    inner = toy(lambda self, x: self.a(x).relu(), a=Linear())
    block = toy(lambda self, x: self.b(self.m(x) + self.m(x + 1)), m=inner, b=Linear())
    run = passes(block, ["m.a", "b"])
    assert run("m.a") == {"m.a": 2, "b": 1}
    assert run() == {"m.a": 0, "b": 1}


def test_calls_within_what_was_read_back_are_counted(passes):
    """First only a was kept; then m's first call stands for one of a's, and the next is a's
    second."""
    inner = toy(lambda self, x: self.b(self.a(x)), a=Linear(), b=Linear())
    block = toy(lambda self, x: self.m(x) + self.c(self.a(x + 1)), m=inner, c=Linear())
    block.a = inner.a
    run = passes(block, ["m.a", "m.b", "c"])
    for settled in (["m.a"], ["m.b"], [], ["c"]):
        run(*settled)


ODD = {
    "a dict": lambda self, x: {"out": self.a(x)},
    "its input": lambda self, x: (self.a(x), x)[1],
    "a view of more than it holds": lambda self, x: self.a(x)[:, :2],
    "a part that begins later": lambda self, x: self.a(x)[1:],
    "one memory twice": lambda self, x: (y := self.a(x), y),
    "mostly by-product": lambda self, x: (self.a(x), x.new_ones(100)),
}


@pytest.mark.parametrize("kind", ODD)
def test_of_an_odd_output_the_parts_are_kept(kind, passes):
    def first(out):
        out = out["out"] if isinstance(out, dict) else out
        out = out[0] if isinstance(out, tuple) else out
        return out.sum() * torch.ones(3, 4)

    block = toy(
        lambda self, x: self.b(first(self.odd(x))), odd=toy(ODD[kind], a=Linear()), b=Linear()
    )
    run = passes(block, ["odd.a", "b"])
    run("odd.a")
    assert run() == {"odd.a": 1, "b": 1}  # the first pass found out that odd is odd
    assert run() == {"odd.a": 0, "b": 1}


def test_the_order_of_axes_is_kept(passes):
    """What follows may add in another order if the memory is in another order."""
    inner = toy(lambda self, x: self.a(x).T, a=Linear())
    strides = []
    block = toy(
        lambda self, x: (y := self.m(x), strides.append(y.stride()), self.b(y.T))[2],
        m=inner, b=Linear(),
    )  # fmt: skip
    run = passes(block, ["m.a", "b"])
    run("m.a")
    assert run() == {"m.a": 0, "b": 1}
    assert set(strides) == {(1, 4)}


def test_experts_are_kept_side_by_side_and_not_run_before_their_stage(tmp_path):
    experts = UnfusedExperts.__new__(UnfusedExperts)
    nn.Module.__init__(experts)
    for number in "01":
        pair = toy(lambda self, x: self.down(self.up(x)), up=Linear(), down=Linear())
        experts.add_module(number, pair)
    experts.forward = lambda x: experts.get_submodule("0")(x) + experts.get_submodule("1")(x)
    block = toy(lambda self, x: self.experts(x), experts=experts)
    ups, downs = ["experts.0.up", "experts.1.up"], ["experts.0.down", "experts.1.down"]
    replay = Replay(block, [ups, downs], tmp_path)
    x = torch.randn(3, 4)
    linears = {name: block.get_submodule(name) for name in ups + downs}

    def run(*taps):
        for linear in linears.values():
            linear.runs = 0
        with replay.passes(taps) as begin:
            begin("sample")
            out = block(x)
        return out, [linear.runs for linear in linears.values()]

    expected = block(x)
    assert run(*downs)[1] == [1, 1, 0, 0]  # a look at what comes before anything is settled
    assert run(*ups)[1] == [0, 0, 0, 0]
    replay.settle(ups)
    assert run(*downs)[1] == [1, 1, 0, 0]
    replay.settle(downs)
    out, runs = run()
    assert runs == [0, 0, 1, 1]
    assert torch.equal(out, expected)
    replay.close()


def test_a_full_disk_is_an_error_that_says_so(passes, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = passes(toy(lambda self, x: self.a(x), a=Linear()), ["a"])
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        run("a")


def test_closing_gives_the_space_back(passes, tmp_path):
    run = passes(toy(lambda self, x: self.a(x), a=Linear()), ["a"])
    run("a")
    assert not list(tmp_path.iterdir())  # the file has no name
    assert run() == {"a": 0}
    run.replay.close()
    assert run() == {"a": 1}
