"""Before the main loop, where a share of a whole block or model is kept: how high weights must
score."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pennyweight.core import PennyweightError, Stats
from pennyweight.model.writer import write_text
from pennyweight.observe.gradient import GRADIENT_FIELDS
from pennyweight.pipeline.gradients import Gradients
from pennyweight.pipeline.plan import Plan, Task
from pennyweight.pipeline.survey import Site, Survey
from pennyweight.quantize.base import SelectsTogether
from pennyweight.saliency.select import WIDE, Cutoff, cut, require_numbers

FILE = "cutoffs.json"


@dataclass(frozen=True, kw_only=True)
class Cutoffs:
    """The cut-offs of a plan, each over the tensors of one scope, quantizer and options.

    One tensor and its gradient are in memory at a time. The result is a file in the work directory,
    so that an interrupted run goes on with it.
    """

    plan: Plan
    survey: Survey
    gradients: Gradients
    path: Path  # the work directory

    def find(self) -> dict[str, Cutoff]:
        """Tensor -> its cut-off, which says also how many of its weights that score just that much
        are kept. Tensors that choose for themselves have none.

        Raises a PennyweightError that names the tensor whose scores are no numbers.
        """
        scopes = self._scopes()
        if not scopes:
            return {}
        file = self.path / FILE
        if not file.is_file():
            found = {name: cutoff for sites in scopes for name, cutoff in self._cut(sites)}
            stored = {name: (one.value, one.ties) for name, one in found.items()}
            write_text(file, json.dumps(stored, indent=1) + "\n")
        return {name: Cutoff(*pair) for name, pair in json.loads(file.read_bytes()).items()}

    def _scopes(self) -> list[list[Site]]:
        """The sites of each scope, in the order they run."""
        found: dict[str, list[Site]] = {}
        for site in self.survey.sites:
            task = self.plan.by_tensor.get(site.tensor)
            if task is None or (quantizer := together(task)) is None:
                continue
            block = site.block if quantizer.scope == "layer" else None
            key = repr((task.quantizer, sorted(task.options.items()), block))
            found.setdefault(key, []).append(site)
        return list(found.values())

    def _cut(self, sites: list[Site]) -> Iterator[tuple[str, Cutoff]]:
        scores = _Scores(self, sites)
        quantizer = together(self.plan.by_tensor[sites[0].tensor])
        assert quantizer is not None
        left = cut(scores, quantizer.share)
        for site, score in scores.by_site():
            yield site.tensor, left
            left = left.after(score)

    def score(self, site: Site) -> Tensor | None:
        """What the quantizer will rank the weights of one tensor by, if it can."""
        task = self.plan.by_tensor[site.tensor]
        quantizer, stats = together(task), Stats()
        assert quantizer is not None
        if self.plan.needs(task) & GRADIENT_FIELDS:
            stats = self.gradients.of(site, stats)
        if quantizer.is_blind(stats):
            return None
        weight, format = self.survey.weight(site), self.plan.scheme(task).weight
        try:
            return require_numbers(quantizer.score(weight, format, stats))
        except PennyweightError as error:
            raise type(error)(f"{site.tensor}: {error}") from None


@dataclass(frozen=True)
class _Scores:
    """The scores of several tensors, made again whenever they are walked through."""

    cutoffs: Cutoffs
    sites: list[Site]

    def __iter__(self) -> Iterator[Tensor]:
        return (score for _, score in self.by_site())

    def by_site(self) -> Iterator[tuple[Site, Tensor]]:
        for site in self.sites:
            score = self.cutoffs.score(site)
            if score is not None:
                yield site, score


def together(task: Task) -> SelectsTogether | None:
    """The quantizer of a task whose weights to keep are chosen over several tensors."""
    made = task.make()
    return made if isinstance(made, SelectsTogether) and made.scope in WIDE else None
