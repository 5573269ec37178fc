"""Quantize the linears of one stage: observe their inputs, solve, and put the result in the
block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pennyweight.core import (
    DataError,
    Format,
    PennyweightError,
    Quantized,
    Scheme,
    Stats,
    UnsupportedError,
)
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.model.linear import static_input_scale
from pennyweight.model.stream import Block
from pennyweight.model.topology import Group
from pennyweight.model.workers import Workers
from pennyweight.observe.gradient import GRADIENT_FIELDS
from pennyweight.pipeline.gradients import Gradients
from pennyweight.pipeline.install import install
from pennyweight.pipeline.plan import Plan, Task
from pennyweight.pipeline.shards import Shards
from pennyweight.pipeline.solve import looks_at_whole_tensors, solve
from pennyweight.pipeline.survey import Site, Survey
from pennyweight.pipeline.workdir import Finished
from pennyweight.quantize.base import FallsBack, SelectsTogether
from pennyweight.saliency.select import Cutoff

LOSS_ROWS = 128  # rows on which the reported loss is computed: it is a progress figure


@dataclass(frozen=True)
class Stage:
    """The part of a plan that concerns one stage of one block."""

    plan: Plan
    survey: Survey
    block: Block
    workers: Workers
    gradients: Gradients | None = None
    cutoffs: Mapping[str, Cutoff] = field(default_factory=dict)  # of tensors that share one

    def quantize(self, groups: tuple[Group, ...], shards: Shards) -> Iterator[Finished]:
        """Observe all groups in one pass, then solve them one after another."""
        work = {group: self._tasks(group) for group in groups}
        work = {group: tasks for group, tasks in work.items() if tasks}
        needs = {
            group: frozenset().union(*(self.plan.needs(task) for _, task in tasks))
            - GRADIENT_FIELDS
            for group, tasks in work.items()
        }
        observed = {group: fields for group, fields in needs.items() if fields}
        stats = shards.observe(self.block, observed) if observed else {}
        largest = largest_absmax(stats.values())
        for group, tasks in work.items():
            yield from self._solve(group, tasks, stats.pop(group, Stats()), largest)

    def _tasks(self, group: Group) -> list[tuple[Site, Task]]:
        sites = [self.survey.site(self.block.index, name) for name in group.linears]
        tasks = self.plan.by_tensor
        return [(site, tasks[site.tensor]) for site in sites if site and site.tensor in tasks]

    def _solve(
        self, group: Group, tasks, observed: Stats, largest: Tensor | None
    ) -> Iterator[Finished]:
        bundles = _bundles(tasks)
        for bundle in bundles:
            stats = self._with_gradients(bundle, observed)
            whole = self.block.weights([site.local for site, _ in bundle])
            weights = whole.split([site.shape[0] for site, _ in bundle])
            tensors, task = [site.tensor for site, _ in bundle], bundle[0][1]
            scheme = self.plan.scheme(task)
            try:
                solved = self._round(whole, scheme.weight, task, stats, group)
                input_scale, note = self._input_scale(group, scheme, stats, largest)
            except PennyweightError as error:
                raise type(error)(f"{', '.join(tensors)}: {error}") from None
            if bundle is bundles[-1]:
                observed.forget()
            start = 0
            for (site, _), weight in zip(bundle, weights, strict=True):
                part = solved.rows(start, start + len(weight)) if len(bundle) > 1 else solved
                start += len(weight)
                rounded = part.dequantize()
                install(self.block, site.local, rounded, scheme, input_scale)
                loss, metric = relative_loss(weight, rounded, stats)
                yield Finished(
                    tensor=site.tensor, quantized=replace(part, notes={**part.notes, **note}),
                    loss=loss, metric=metric, tokens=stats.tokens, input_scale=input_scale,
                )  # fmt: skip

    def _with_gradients(self, bundle: list[tuple[Site, Task]], stats: Stats) -> Stats:
        """What was observed of the input, and the gradient of the weight where it is needed."""
        site, task = bundle[0]
        if not self.plan.needs(task) & GRADIENT_FIELDS:
            return stats
        assert self.gradients is not None and len(bundle) == 1, "each weight has its own gradient"
        self._require_unchanged(site.tensor, "its gradient is that of the weight")
        return self.gradients.of(site, stats)

    def _require_unchanged(self, tensor: str, what: str) -> None:
        if f"{self.survey.by_tensor[tensor].local}.weight" in self.block.changes:
            raise UnsupportedError(
                f"{tensor}: {what} as it was given, and a transform changed it; leave this tensor "
                "out of the transform's match"
            )

    def _round(
        self, weight: Tensor, format: Format, task: Task, stats: Stats, group: Group
    ) -> Quantized:
        quantizer = task.make()
        if quantizer.needs and self._is_starved(group, stats):
            why = f"the expert saw {stats.tokens} tokens"
            if isinstance(quantizer, FallsBack):
                solved = solve(quantizer.without_data(), weight, format, stats, self.workers)
                return replace(solved, notes={"fallback": quantizer.fallback, "why": why})
            note = {"fallback": "rtn", "why": why}
            return Quantized(weight=round_to_nearest(weight, format), notes=note)
        if isinstance(quantizer, SelectsTogether) and (cutoff := self.cutoffs.get(task.tensor)):
            self._require_unchanged(task.tensor, "the weights to keep were chosen from it")
            keep = cutoff.keep(quantizer.score(weight, format, stats))
            stats = replace(stats, keep=keep)
        return solve(quantizer, weight, format, stats, self.workers)

    def _is_starved(self, group: Group, stats: Stats) -> bool:
        return stats.tokens < self.plan.min_expert_tokens and is_expert(group)

    def _input_scale(
        self, group: Group, scheme: Scheme, stats: Stats, largest: Tensor | None
    ) -> tuple[Tensor | None, dict[str, str]]:
        """The static scale of a group's input, and a note if it is not the group's own.

        largest: |x| of each channel over all groups of the stage, which are experts if there are
        several: an expert that saw too few tokens takes the range of them all.
        """
        activation = scheme.activation
        if activation is None or activation.dynamic:
            return None, {}
        seen = getattr(stats, activation.observed)
        if seen is not None and not self._is_starved(group, stats):
            return static_input_scale(seen, activation), {}
        if largest is None or not is_expert(group):
            raise DataError(
                "no calibration token reached it, and a static input scale is fixed by those that "
                "do; calibrate on more or other text, or use W8A8, whose scales are dynamic"
            )
        why = f"the largest of the block's experts, as this one saw {stats.tokens} tokens"
        return static_input_scale(largest, activation), {"input_scale": why}


def largest_absmax(stats: Iterable[Stats]) -> Tensor | None:
    """Channel by channel over all of one width; None if nothing was seen, or widths differ."""
    seen = [one.absmax for one in stats if one.absmax is not None]
    if not seen or len({len(absmax) for absmax in seen}) > 1:
        return None
    return torch.stack(seen).amax(0)


def is_expert(group: Group) -> bool:
    """Experts carry a number inside the block's names."""
    return any(part.isdigit() for part in group.linears[0].split("."))


def _bundles(tasks: list[tuple[Site, Task]]) -> list[list[tuple[Site, Task]]]:
    """Linears of one group with the same scheme and quantizer: their rows are solved together."""
    bundles: dict[str, list[tuple[Site, Task]]] = {}
    for site, task in tasks:
        alone = site.tensor if looks_at_whole_tensors(task.make()) else ""
        same = repr((task.scheme, task.quantizer, sorted(task.options.items()), alone))
        bundles.setdefault(same, []).append((site, task))
    return list(bundles.values())


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
