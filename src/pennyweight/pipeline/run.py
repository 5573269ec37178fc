"""The main loop: carry out a plan block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pennyweight.core import Progress
from pennyweight.model.capture import capture
from pennyweight.model.engine import Engine, Local, threads_of
from pennyweight.model.memory import give_back, peak_bytes
from pennyweight.model.prompt import Prompt
from pennyweight.model.stream import Block
from pennyweight.model.workers import Workers
from pennyweight.pipeline.cutoffs import Cutoffs
from pennyweight.pipeline.gradients import FOLDER, Gradients
from pennyweight.pipeline.head import Head
from pennyweight.pipeline.install import restore
from pennyweight.pipeline.plan import Plan
from pennyweight.pipeline.rescale import Rescaling
from pennyweight.pipeline.shards import Here, Shards
from pennyweight.pipeline.spread import Carry, There
from pennyweight.pipeline.stage import Stage
from pennyweight.pipeline.survey import Survey
from pennyweight.pipeline.training import Trainings
from pennyweight.pipeline.workdir import Finished, WorkDir
from pennyweight.saliency.select import Cutoff


@dataclass(frozen=True, kw_only=True)
class Run:
    """A plan, the model it is for, and the place for its result."""

    plan: Plan
    survey: Survey
    work: WorkDir
    rows: Tensor | Sequence[Prompt] | None  # calibration token ids [samples, tokens], or prompts
    workers: Workers
    progress: Progress
    engine: Engine = field(default_factory=Local)  # whose processes the samples pass through

    def __call__(self) -> None:
        """Finish every block that is not finished, and a head that is planned; each becomes a file
        as soon as it is done."""
        steps, count = self.survey.steps(self.plan.by_tensor), len(self.survey.topologies)
        todo = [index for index in steps if not self.work.is_done(index)]
        unfinished = sum(site.block in todo for site in self._planned_sites())
        self.progress.begin(blocks=len(steps), done=len(steps) - len(todo), linears=unfinished)
        if not todo:
            return
        head = Head.planned(self.plan, self.survey, self.workers, self.progress)
        # A head that needs no data needs no pass through the blocks before it.
        last = max((i for i in todo if i < count or (head and head.needs_data)), default=-1)
        gradients = self._gradients()
        gradients.compute(todo)
        cutoffs = Cutoffs(
            plan=self.plan, survey=self.survey, gradients=gradients, path=self.work.path
        ).find()
        shards = self._shards()
        samples = shards.states() if self.engine.is_local else []  # what only this process can do
        rescaling = Rescaling(self.plan, self.survey, self.workers)
        trainings = Trainings(self.plan, self.survey, self.workers, rescaling, self.progress)
        originals = trainings.originals(samples)
        for index in range(min(last + 1, count)):
            if index not in todo and shards.is_empty:
                continue
            block = self._block(index)
            with shards.loaded(block):
                block.advance(originals, self.workers)
                if index in todo:
                    told = list(rescaling(block, samples))
                    before = trainings.look(block, samples, originals)
                    finished = self._quantize(block, shards, gradients, cutoffs)
                    finished, more = trainings(block, before, finished)
                    changed = rescaling.changed(block)
                    self.work.save(index, finished, changed, [*told, *more])
                elif self.engine.is_local:
                    restore(block, self.work, self.survey)
                if index < last and not shards.is_empty:
                    shards.advance(block)
            self.progress.block(index=index, peak_bytes=peak_bytes())
        if head is not None and count in todo:
            finished = head.quantize(self.rows, shards.states())
            self._tell(count, finished)
            self.work.save(count, [finished], {}, [])
            self.progress.block(index=count, peak_bytes=peak_bytes())
        shards.close()

    def _block(self, index: int) -> Block:
        topology = self.survey.topologies[index]
        return Block(self.survey.skeleton, index, topology, self.plan.compute_dtype, self.work.path)

    def _planned_sites(self):
        planned = self.plan.by_tensor
        return [site for site in self.survey.quantizable.values() if site.tensor in planned]

    def _shards(self) -> Shards:
        if self.rows is None:
            return Here([], self.workers)
        if self.engine.is_local:
            return Here(
                capture(self.survey.skeleton, self.rows, self.plan.compute_dtype), self.workers
            )
        path = self.survey.skeleton.checkpoint.path.resolve()
        carry = Carry(
            path=path, work=self.work.resolve(), rows=self.rows,
            threads=threads_of(self.engine, None),
        )  # fmt: skip
        return There(engine=self.engine, carry=carry, survey=self.survey)

    def _gradients(self) -> Gradients:
        some = self.plan.calibrate.gradient_samples if self.plan.calibrate else None
        return Gradients(
            plan=self.plan, survey=self.survey, folder=self.work.path / FOLDER,
            rows=None if self.rows is None else self.rows[:some],
            workers=self.workers, progress=self.progress,
        )  # fmt: skip

    def _quantize(
        self,
        block: Block,
        shards: Shards,
        gradients: Gradients,
        cutoffs: dict[str, Cutoff],
    ) -> list[Finished]:
        stage = Stage(self.plan, self.survey, block, self.workers, gradients, cutoffs)
        finished: list[Finished] = []
        # q,k,v | o | gate,up | down: the inputs of later ones come from quantized earlier ones
        for groups in block.topology.stages:
            give_back()
            done = len(finished)
            for one in stage.quantize(groups, shards):
                finished.append(one)
                self._tell(block.index, one)
            shards.settle(block, groups, finished[done:])
        return finished

    def _tell(self, index: int, one: Finished) -> None:
        self.progress.linear(block=index, name=one.tensor, loss=one.loss, metric=one.metric)
        notes = one.quantized.notes
        if "fallback" in notes:
            self.progress.say(f"{one.tensor}: {notes['fallback']}, as {notes['why']}")
        if "warning" in notes:
            self.progress.say(f"{one.tensor}: {notes['warning']}")
