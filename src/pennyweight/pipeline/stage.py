"""Quantize the linears of one stage: observe their inputs, solve, and put the result in the
block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pennyweight.core import (
    Format,
    PennyweightError,
    QTensor,
    Quantized,
    Scheme,
    Stats,
)
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.model.capture import Sample
from pennyweight.model.linear import QuantizedLinear, static_input_scale
from pennyweight.model.stream import Block
from pennyweight.model.topology import Group
from pennyweight.model.workers import Workers
from pennyweight.observe.collect import Collector
from pennyweight.pipeline.plan import Plan, Task
from pennyweight.pipeline.survey import Site, Survey
from pennyweight.pipeline.workdir import Finished
from pennyweight.quantize.base import Prepares

CHUNK = 4  # samples whose inputs are held at once: bounds memory, and is the order of the sums
ROWS = 1024  # output rows solved per task
LOSS_ROWS = 128  # rows on which the reported loss is computed: it is a progress figure


@dataclass(frozen=True)
class Stage:
    """The part of a plan that concerns one stage of one block."""

    plan: Plan
    survey: Survey
    block: Block
    workers: Workers

    def quantize(self, groups: tuple[Group, ...], samples: list[Sample]) -> Iterator[Finished]:
        """Observe all groups in one pass, then solve them one after another."""
        work = {group: self._tasks(group) for group in groups}
        work = {group: tasks for group, tasks in work.items() if tasks}
        needs = {
            group: frozenset().union(*(self.plan.needs(task) for _, task in tasks))
            for group, tasks in work.items()
        }
        observed = [group for group in work if needs[group]]
        stats = self._observe(observed, needs, samples) if observed else {}
        for group, tasks in work.items():
            yield from self._solve(group, tasks, stats.pop(group, Stats()))

    def _tasks(self, group: Group) -> list[tuple[Site, Task]]:
        sites = [self.survey.site(self.block.index, name) for name in group.linears]
        tasks = self.plan.by_tensor
        return [(site, tasks[site.tensor]) for site in sites if site and site.tensor in tasks]

    def _observe(self, groups, needs, samples: list[Sample]) -> dict[Group, Stats]:
        collectors = {group: Collector(needs[group], self.workers) for group in groups}
        for start in range(0, len(samples), CHUNK):
            part = self.block.inputs(groups, samples[start : start + CHUNK], self.workers)
            for group, inputs in zip(groups, part, strict=True):
                try:
                    collectors[group].add(inputs)
                except PennyweightError as error:
                    raise type(error)(f"{self.block.prefix}{group.linears[0]}: {error}") from None
            del part
        return {group: collector.stats() for group, collector in collectors.items()}

    def _solve(self, group: Group, tasks, stats: Stats) -> Iterator[Finished]:
        for bundle in _bundles(tasks):
            weights = [self.block.weight(site.local) for site, _ in bundle]
            tensors, task = [site.tensor for site, _ in bundle], bundle[0][1]
            scheme = self.plan.scheme(task)
            try:
                solved = self._round(torch.cat(weights), scheme.weight, task, stats, group)
            except PennyweightError as error:
                raise type(error)(f"{', '.join(tensors)}: {error}") from None
            input_scale = None
            if scheme.activation is not None and not scheme.activation.dynamic:
                stored = scheme.weight.scale
                assert stats.absmax is not None and isinstance(stored, torch.dtype)
                input_scale = static_input_scale(stats.absmax, scheme.activation, stored)
            start = 0
            for (site, _), weight in zip(bundle, weights, strict=True):
                q = take_rows(solved.weight, start, start + len(weight))
                start += len(weight)
                install(self.block, site.local, q, scheme, input_scale)
                loss, metric = relative_loss(weight, q.dequantize(), stats)
                yield Finished(
                    tensor=site.tensor, weight=q, loss=loss, metric=metric, tokens=stats.tokens,
                    notes=dict(solved.notes), input_scale=input_scale,
                )  # fmt: skip

    def _round(
        self, weight: Tensor, format: Format, task: Task, stats: Stats, group: Group
    ) -> Quantized:
        quantizer = task.make()
        starved = stats.tokens < self.plan.min_expert_tokens and is_expert(group)
        if quantizer.needs and starved:
            note = {"fallback": "rtn", "why": f"the expert saw {stats.tokens} tokens"}
            return Quantized(weight=round_to_nearest(weight, format), notes=note)
        rows = ROWS if format.group_rows == 1 else len(weight)
        if isinstance(quantizer, Prepares):
            quantizer.prepare(stats, self.workers)
        parts = self.workers.map(
            lambda start: quantizer(weight[start : start + rows], format, stats),
            range(0, len(weight), rows),
        )
        joined = join_rows([part.weight for part in parts])
        return Quantized(weight=joined, notes=parts[0].notes)


def is_expert(group: Group) -> bool:
    """Experts carry a number inside the block's names."""
    return any(part.isdigit() for part in group.linears[0].split("."))


def _bundles(tasks: list[tuple[Site, Task]]) -> list[list[tuple[Site, Task]]]:
    """Linears of one group with the same scheme and quantizer: their rows are solved together."""
    bundles: dict[str, list[tuple[Site, Task]]] = {}
    for site, task in tasks:
        same = repr((task.scheme, task.quantizer, sorted(task.options.items())))
        bundles.setdefault(same, []).append((site, task))
    return list(bundles.values())


def install(
    block: Block, local: str, q: QTensor, scheme: Scheme, input_scale: Tensor | None
) -> None:
    """From here on the block computes with the quantized weight (and rounded activation)."""
    linear = block.module.get_submodule(local)
    assert isinstance(linear, nn.Linear)
    if linear.weight.is_meta:
        return  # nothing is observed in this run, so the block was never loaded
    weight = nn.Parameter(q.dequantize().to(block.dtype), requires_grad=False)
    linear.weight = weight
    if scheme.activation is not None:
        rounding = QuantizedLinear(weight, linear.bias, scheme.activation, input_scale)
        block.replace(local, rounding)


def relative_loss(weight: Tensor, rounded: Tensor, stats: Stats) -> tuple[float, str]:
    """Squared error over squared signal, of the layer's output where its inputs were observed."""
    rows = torch.linspace(0, len(weight) - 1, min(LOSS_ROWS, len(weight))).long()
    signal, error = weight[rows], weight[rows] - rounded[rows]
    if stats.gram is None:
        return _ratio(error.square().sum(), signal.square().sum()), "weight"
    energy = lambda part: ((part @ stats.gram) * part).sum()
    return _ratio(energy(error), energy(signal)), "output"


def _ratio(error: Tensor, signal: Tensor) -> float:
    return (error / signal).item() if signal > 0 else 0.0


def take_rows(q: QTensor, start: int, stop: int) -> QTensor:
    """Rows start .. stop - 1 of a QTensor whose groups lie within rows."""
    part = lambda value: (
        take_rows(value, start, stop) if isinstance(value, QTensor) else value[start:stop]
    )
    return replace(
        q, codes=q.codes[start:stop], scale=part(q.scale),
        zero_point=None if q.zero_point is None else part(q.zero_point),
    )  # fmt: skip


def join_rows(parts: list[QTensor]) -> QTensor:
    """The inverse of cutting with `take_rows`."""
    if len(parts) == 1:
        return parts[0]

    def join(values):
        return join_rows(values) if isinstance(values[0], QTensor) else torch.cat(values)

    return replace(
        parts[0], codes=torch.cat([q.codes for q in parts]), scale=join([q.scale for q in parts]),
        zero_point=None if parts[0].zero_point is None else join([q.zero_point for q in parts]),
    )  # fmt: skip
