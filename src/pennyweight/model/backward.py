"""The gradient of the loss, block by block, from the last to the first; weights never need one.

The hidden state that entered each block is kept. `Tail` gives the gradient of the loss with respect
to the state that left the last block; `back` recomputes one block and turns the gradient of its
output into that of its input. What reaches a linear on the way, its input x and the gradient dy of
its output, gives the gradient of its weight, dy^T x, to whoever wants it and when.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pennyweight.core import DataError
from pennyweight.model.auto import argument_names
from pennyweight.model.capture import Sample, set_parameters
from pennyweight.model.prompt import Prompt
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.topology import to_meta
from pennyweight.model.workers import Workers

HEAD_TOKENS = 128  # whose logits are held at once: 16 MB of float32 at a vocabulary of 32,000


@dataclass
class Call:
    """One use of a linear by one sample."""

    x: Float[Tensor, "tokens in"]
    dy: Float[Tensor, "tokens out"] | None = None  # None if the loss does not depend on it


@dataclass
class Passed:
    """What one sample left behind on its way back through a block."""

    gradient: Tensor  # of the block's input
    calls: dict[str, list[Call]] = field(default_factory=dict)  # of each linear that was watched


@contextmanager
def _differentiable() -> Iterator[None]:
    """Workers compute in inference mode, whose tensors cannot take part in a backward pass."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def forward(index: int, block: nn.Module, samples: list[Sample], workers: Workers) -> list[Tensor]:
    """The output of block `index` for each sample, of a kind that can be differentiated later."""

    def step(sample: Sample) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return sample.run(index, block)

    return workers.map(step, samples)


def back(
    index: int,
    block: nn.Module,
    linears: Sequence[str],
    samples: list[tuple[Sample, Tensor]],
    workers: Workers,
) -> list[Passed]:
    """Pass the gradient of the output of block `index` back through it, for each sample.

    samples: a Sample whose hidden state enters the block, and the gradient of what leaves it.
    linears: names within the block, whose calls are to be recorded.
    """

    def step(item: tuple[Sample, Tensor]) -> Passed:
        sample, gradient = item
        with _differentiable():
            hidden = sample.hidden.detach().clone().requires_grad_()
            calls = watch()
            out = Sample(hidden, sample.calls).run(index, block)
            torch.autograd.backward(out, gradient.to(out.dtype), inputs=[hidden, *leaves(calls)])
            assert hidden.grad is not None, "the block's output does not depend on its input"
            return Passed(hidden.grad, calls)

    with _watched(block, linears) as (watch, leaves):
        return workers.map(step, samples)


@contextmanager
def _watched(block: nn.Module, names: Sequence[str]):
    """(start recording the calls of this thread, the leaves that a record needs gradients of)."""
    local = threading.local()

    def watch() -> dict[str, list[Call]]:
        local.calls, local.leaves = {}, []
        return local.calls

    def hook(name: str):
        def record(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            call = Call(args[0].detach().flatten(0, -2))
            local.calls.setdefault(name, []).append(call)
            if not out.requires_grad:  # its input does not depend on the hidden state
                local.leaves.append(out := out.detach().requires_grad_())
            out.register_hook(lambda dy: setattr(call, "dy", dy.detach().flatten(0, -2)))
            return out

        return record

    handles = [block.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield watch, lambda calls: local.leaves
    finally:
        for handle in handles:
            handle.remove()


class _StandIn(nn.Module):
    """In the place of every block: hands on the state that it was given, whatever it is called
    with."""

    def __init__(self, in_tuple: bool) -> None:
        super().__init__()
        self._in_tuple, self._local = in_tuple, threading.local()

    def hold(self, hidden: Tensor) -> None:
        self._local.hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        hidden = self._local.hidden
        return (hidden,) if self._in_tuple else hidden


@dataclass(frozen=True)
class Tail:
    """All of a model that comes after its blocks, as the model itself computes it."""

    model: nn.Module
    stand_in: _StandIn

    def gradient(
        self, row: Int64[Tensor, " tokens"] | Prompt, hidden: Float[Tensor, "1 tokens hidden"]
    ) -> tuple[Float[Tensor, "1 tokens hidden"], float]:
        """(gradient of the loss with respect to `hidden`, loss).

        hidden: what the last block made of `row`. The loss is the mean cross-entropy, in nats, of
        each token of text after those before it. Raises DataError if there is none.
        """
        prompt = row if isinstance(row, Prompt) else Prompt(ids=row)
        targets = prompt.targets()
        if not len(targets):
            raise DataError("a gradient needs samples of at least 2 tokens: one to predict")
        total = 0.0
        with _differentiable():
            leaf = hidden.detach().clone().requires_grad_()
            self.stand_in.hold(leaf)
            for positions, logits in self._logits(prompt.ids[None], targets - 1):
                target = prompt.ids[positions + 1]
                loss = nn.functional.cross_entropy(logits.float(), target, reduction="sum")
                (loss / len(targets)).backward(inputs=[leaf])
                total += loss.item()
        assert leaf.grad is not None
        return leaf.grad, total / len(targets)

    def _logits(self, ids: Tensor, positions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(positions, logits [positions, vocab]), some positions at a time.

        Images are left out: what the blocks made of them is in the state that is handed on.
        """
        if "logits_to_keep" not in argument_names(self.model):
            yield positions, self.model(input_ids=ids, use_cache=False).logits[0, positions]
            return
        for keep in positions.split(HEAD_TOKENS):
            yield keep, self.model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits[0]


@contextmanager
def tail(skeleton: Skeleton, sample: Sample, dtype: torch.dtype) -> Iterator[Tail]:
    """The model without its blocks, for the length of a `with` block.

    sample: shows how a block is called; the kind of thing it returns shows on shapes alone.
    """
    last = len(skeleton.blocks) - 1
    stand_in = _StandIn(_returns_tuple(skeleton.blocks[last], sample, last))
    originals, empty = list(skeleton.blocks), {}
    for name, value in _outside(skeleton, dtype):
        set_parameters(skeleton.model, {name: value})
        empty[name] = value.to("meta")
    try:
        for index in range(len(originals)):
            skeleton.blocks[index] = stand_in
        yield Tail(skeleton.model, stand_in)
    finally:
        for index, original in enumerate(originals):
            skeleton.blocks[index] = original
        set_parameters(skeleton.model, empty)


def _outside(skeleton: Skeleton, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every parameter outside the blocks; a head tied to the embedding is read once."""
    read: dict[str, Tensor] = {}
    for name, source in skeleton.outside_sources().items():
        if source.key not in read:
            read[source.key] = skeleton.read(source).to(dtype)
        yield name, read[source.key]


def _returns_tuple(block: nn.Module, sample: Sample, index: int) -> bool:
    args, kwargs = to_meta(sample.calls[index])
    shapes_only = copy.deepcopy(block).to("meta")
    with torch.no_grad():
        return isinstance(shapes_only(to_meta(sample.hidden), *args, **kwargs), tuple)
