"""The block trainer: fit learned parameters to what the output of one block should be.

Memory is bounded by one block in float32, twice (the weights that are learned from, and those that
are computed with), and by the activations of one batch: the gradient of a weight is formed some
rows at a time, passed on to the parameters it depends on, and forgotten. The tasks do not depend on
the number of threads, and their results are added up in one order, so neither do the results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pennyweight.core import Mapper, NumericalError
from pennyweight.core.finite import is_finite
from pennyweight.model.backward import Call
from pennyweight.model.capture import Sample, set_parameters
from pennyweight.train.base import Learning, Trainer
from pennyweight.train.loss import LOSSES, squared_error
from pennyweight.train.signed import SignDescent
from pennyweight.train.straight import StraightLinear, Tape

# Of Adam: far below the gradient of one group of a large model, which torch's 1e-8 is not; with it
# the steps would depend on how many groups share the block's error.
EPS = 1e-15
JUDGES = 8  # every eighth sample decides what is kept


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A block in float32 with StraightLinears in it, and what goes in and should come out."""

    name: str  # of the block, for messages
    index: int
    module: nn.Module
    linears: Mapping[str, StraightLinear]
    tape: Tape
    samples: Sequence[Sample]  # whose hidden states enter the block
    targets: Sequence[Tensor]  # [1, tokens, hidden] each
    workers: Mapper
    held_out: bool = True  # the samples that judge are not learned from

    @property
    def judged_by(self) -> list[int]:
        """Samples by which it is judged what was learned."""
        step = min(JUDGES, len(self.samples))
        return list(range(step - 1, len(self.samples), step))

    @property
    def learned_from(self) -> list[int]:
        every = range(len(self.samples))
        return sorted(set(every) - set(self.judged_by)) if self.held_out else list(every)

    def error(self) -> float:
        """Squared error of the block's output on the judging samples, relative to its square."""

        def one(index: int) -> tuple[float, float]:
            with torch.no_grad():
                out, target = self.run(index), self.targets[index].float()
            return squared_error(out, target).item(), target.square().mean().item()

        errors, squares = zip(*self.workers.map(one, self.judged_by), strict=True)
        return sum(errors) / sum(squares)

    def run(self, index: int, hidden: Tensor | None = None) -> Float[Tensor, "1 tokens hidden"]:
        """The block's output of one sample, in float32."""
        sample = self.samples[index]
        hidden = sample.hidden.float() if hidden is None else hidden
        return Sample(hidden, [_as_float(sample.calls[self.index])]).run(0, self.module)


def _as_float(nest: Any) -> Any:
    """Masks and positions in float32 too: attention takes no mixture."""
    if isinstance(nest, Tensor):
        return nest.float() if nest.is_floating_point() else nest
    if isinstance(nest, tuple | list):
        return type(nest)(_as_float(item) for item in nest)
    if isinstance(nest, dict):
        return {key: _as_float(item) for key, item in nest.items()}
    return nest


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The parameters of the epoch with the least error, and the errors of all epochs."""

    values: dict[str, Tensor]
    errors: tuple[float, ...]  # of the start, then after each epoch

    @property
    def epoch(self) -> int:
        return min(range(len(self.errors)), key=self.errors.__getitem__)


def fit(stage: Stage, learning: Learning, trainer: Trainer, seed: int) -> Fitted:
    """Learn for so many epochs; what is kept is never worse on the judging samples than the start.

    Raises NumericalError that names block, epoch and step where the loss or a gradient is not
    finite.
    """
    values = {name: value.clone() for name, value in learning.start.items()}
    descent = Descent(stage, learning, trainer, values)
    descent.place()
    errors, best = [stage.error()], {name: value.clone() for name, value in values.items()}
    generator = torch.Generator().manual_seed(number(seed, stage.name))
    for epoch, steps in enumerate(_epochs(stage, learning, trainer, generator), 1):
        for step, batch in enumerate(steps, 1):
            with _named(f"{stage.name}: epoch {epoch}, step {step}"):
                descent.step(batch)
        descent.place()
        errors.append(stage.error())
        if errors[-1] < min(errors[:-1]):
            best = {name: value.clone() for name, value in values.items()}
    return Fitted(values=best, errors=tuple(errors))


def number(seed: int, name: str) -> int:
    """A seed for what has this name, so that results do not depend on the order of blocks."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7])


def _epochs(
    stage: Stage, learning: Learning, trainer: Trainer, generator: torch.Generator
) -> Iterator[list[tuple[int, ...]]]:
    """The batches of each pass over the samples; the last stops where all steps are taken."""
    left = learning.signed_steps
    for _ in range(trainer.epochs):
        steps = list(batches(stage.learned_from, trainer.batch, generator))[:left]
        yield steps
        if left is not None and not (left := left - len(steps)):
            return


def batches(
    samples: Sequence[int], size: int, generator: torch.Generator
) -> Iterator[tuple[int, ...]]:
    order = torch.randperm(len(samples), generator=generator).tolist()
    for start in range(0, len(order), size):
        yield tuple(samples[place] for place in order[start : start + size])


class _named:
    """Say where a number was not finite."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, NumericalError):
            raise NumericalError(
                f"{self.where}: {error}; use a lower learning rate, or leave the block's tensors "
                "out of the match"
            ) from None


def optimizer(learning: Learning, values: dict[str, Tensor]) -> torch.optim.Optimizer | SignDescent:
    if learning.signed_steps is not None:
        return SignDescent(values, learning.rates, learning.signed_steps)
    groups = [{"params": [values[n]], "lr": learning.rates[n]} for n in values]
    return torch.optim.AdamW(groups, weight_decay=learning.decay, eps=EPS, foreach=False)


class Descent:
    """Steps of AdamW or SignSGD on the parameters of one block."""

    def __init__(
        self, stage: Stage, learning: Learning, trainer: Trainer, values: dict[str, Tensor]
    ) -> None:
        """values: changed in place by each step."""
        self.stage, self.learning, self.values = stage, learning, values
        self.loss = LOSSES[trainer.loss]
        squares = stage.workers.map(
            lambda index: stage.targets[index].float().square().mean().item(), stage.learned_from
        )
        self.unit = max(sum(squares) / len(squares), 1e-30)  # the loss does not depend on units
        self.optimizer = optimizer(learning, values)

    def place(self) -> None:
        """Compute with the parameters as they are now."""

        def fill(task: tuple[str, int, int]) -> None:
            name, start, stop = task
            with torch.inference_mode(False), torch.no_grad():
                rows = self.learning.weights[name].rows(self.values, start, stop)
                self.stage.linears[name].weight[start:stop].copy_(rows)

        self.stage.workers.map(fill, self._tasks())
        with torch.no_grad():
            vectors = self.learning.vectors(self.values)
        set_parameters(self.stage.module, {n: v.detach().clone() for n, v in vectors.items()})

    def _tasks(self) -> Iterator[tuple[str, int, int]]:
        for name, learned in self.learning.weights.items():
            rows = len(self.stage.linears[name].weight)
            for start in range(0, rows, learned.task_rows):
                yield name, start, min(start + learned.task_rows, rows)

    def step(self, batch: Sequence[int]) -> float:
        """One step on these samples; returns their mean loss before it. Raises NumericalError."""
        self.place()
        vectors = [name for name, _ in self.learning.vectors(self.values).items()]
        for name in vectors:
            self.stage.module.get_parameter(name).requires_grad_()
        passes = self.stage.workers.map(lambda index: self._pass(index, vectors), batch)
        loss = sum(one for one, _, _ in passes) / len(batch)
        if not torch.tensor(loss).isfinite():
            raise NumericalError(f"the loss is {loss}")
        gradients = self._of_weights([calls for _, calls, _ in passes])
        self._add(gradients, self._of_vectors([found for _, _, found in passes], len(batch)))
        for name, gradient in gradients.items():
            if not is_finite(gradient):
                raise NumericalError(f"the gradient of {name} holds NaN or Inf")
            self.values[name].grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        for name, (least, largest) in self.learning.bounds.items():
            self.values[name].clamp_(least, largest)
        return loss

    def _pass(
        self, index: int, vectors: list[str]
    ) -> tuple[float, dict[str, list[Call]], dict[str, Tensor]]:
        """(loss, calls of each linear, gradients of vectors) of one sample."""
        stage = self.stage
        with torch.inference_mode(False), torch.enable_grad():
            calls, leaves = stage.tape.begin()
            hidden = stage.samples[index].hidden.detach().float().clone().requires_grad_()
            target = stage.targets[index].detach().float().clone()
            loss = self.loss(stage.run(index, hidden), target) / self.unit
            wanted = [stage.module.get_parameter(name) for name in vectors]
            inputs = [hidden, *leaves, *wanted]
            found = torch.autograd.grad(loss, inputs, allow_unused=True)
            last = found[len(inputs) - len(wanted) :]
            gradients = {n: g for n, g in zip(vectors, last, strict=True) if g is not None}
            return loss.item(), calls, gradients

    def _of_weights(self, passes: list[dict[str, list[Call]]]) -> dict[str, Tensor]:
        """Gradients of the parameters that weights depend on."""
        calls = {
            name: [call for one in passes for call in one.get(name, []) if call.dy is not None]
            for name in self.learning.weights
        }

        def pull(task: tuple[str, int, int]) -> dict[str, Tensor]:
            name, start, stop = task
            if not calls[name]:  # an expert that no sample reached
                return {}
            learned = self.learning.weights[name]
            with torch.inference_mode(False), torch.enable_grad():
                dw = torch.zeros(stop - start, self.stage.linears[name].in_features)
                for call in calls[name]:
                    assert call.dy is not None
                    dw.addmm_(call.dy[:, start:stop].T, call.x, alpha=1 / len(passes))
                leaves = {n: self.values[n].detach().requires_grad_() for n in learned.reads}
                rows = learned.rows(leaves, start, stop)
                found = torch.autograd.grad(rows, list(leaves.values()), dw, allow_unused=True)
            return {n: g for n, g in zip(leaves, found, strict=True) if g is not None}

        total: dict[str, Tensor] = {}
        for gradients in self.stage.workers.map(pull, self._tasks()):
            self._add(total, gradients)
        return total

    def _of_vectors(self, passes: list[dict[str, Tensor]], count: int) -> dict[str, Tensor]:
        """Gradients of the parameters that gains and biases depend on."""
        summed: dict[str, Tensor] = {}
        for gradients in passes:
            self._add(summed, gradients)
        if not summed:
            return {}
        with torch.enable_grad():
            leaves = {n: value.detach().requires_grad_() for n, value in self.values.items()}
            vectors = self.learning.vectors(leaves)
            names = [name for name in summed if vectors[name].requires_grad]
            found = torch.autograd.grad(
                [vectors[n] for n in names], list(leaves.values()),
                [summed[n] / count for n in names], allow_unused=True,
            )  # fmt: skip
        return {n: g for n, g in zip(leaves, found, strict=True) if g is not None}

    @staticmethod
    def _add(total: dict[str, Tensor], more: dict[str, Tensor]) -> None:
        for name, gradient in more.items():
            total[name] = total[name] + gradient if name in total else gradient
