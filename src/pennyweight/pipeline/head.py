"""The last step of a run whose plan names the head: quantize it as a linear behind the last norm.

Its input is what the quantized blocks make of the calibration text. Its file in the work directory
is that of one block more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pennyweight.core import PennyweightError, Progress, Stats
from pennyweight.model.capture import Sample
from pennyweight.model.head import head_inputs
from pennyweight.model.prompt import Prompt
from pennyweight.model.workers import Workers
from pennyweight.observe.collect import Collector
from pennyweight.pipeline.plan import Plan, Task
from pennyweight.pipeline.shards import SHARD
from pennyweight.pipeline.solve import solve
from pennyweight.pipeline.stage import relative_loss
from pennyweight.pipeline.survey import Site, Survey
from pennyweight.pipeline.workdir import Finished


@dataclass(frozen=True, kw_only=True)
class Head:
    """The head of a model and what a plan has for it."""

    plan: Plan
    survey: Survey
    site: Site
    task: Task
    workers: Workers
    progress: Progress

    @classmethod
    def planned(
        cls, plan: Plan, survey: Survey, workers: Workers, progress: Progress
    ) -> Head | None:
        """None if the plan leaves the head as it is."""
        site = survey.head
        if site is None or (task := plan.by_tensor.get(site.tensor)) is None:
            return None
        return cls(
            plan=plan, survey=survey, site=site, task=task, workers=workers, progress=progress
        )

    @property
    def needs_data(self) -> bool:
        return bool(self.plan.needs(self.task))

    def quantize(self, rows: Tensor | Sequence[Prompt] | None, samples: list[Sample]) -> Finished:
        """samples: of the rows, behind the last block. Raises what the quantizer raises, with the
        name of the tensor."""
        try:
            stats = Stats()
            if self.needs_data:
                assert rows is not None, "a plan that needs data has calibration text"
                stats = self._observe(rows, samples)
            weight, format = self.survey.weight(self.site), self.plan.scheme(self.task).weight
            solved = solve(self.task.make(), weight, format, stats, self.workers)
        except PennyweightError as error:
            raise type(error)(f"{self.site.tensor}: {error}") from None
        loss, metric = relative_loss(weight, solved.dequantize(), stats)
        return Finished(
            tensor=self.site.tensor, quantized=solved, loss=loss, metric=metric, tokens=stats.tokens
        )

    def _observe(self, rows: Tensor | Sequence[Prompt], samples: list[Sample]) -> Stats:
        collector = Collector(self.plan.needs(self.task), self.workers)
        dtype = self.plan.compute_dtype
        pairs = list(zip(rows, samples, strict=True))
        with head_inputs(self.survey.skeleton, self.site.local, samples[0], dtype) as inputs:
            for start in range(0, len(pairs), SHARD):
                collector.add(self.workers.map(inputs, pairs[start : start + SHARD]))
        return collector.stats()
