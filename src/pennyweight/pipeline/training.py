"""Carry out the trainings of a plan on one block, after its rules were carried out."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pennyweight.core import DataError, NumericalError, Progress, Quantized, Stats
from pennyweight.core.finite import is_finite
from pennyweight.model.capture import Sample, set_parameters
from pennyweight.model.feeds import Feed
from pennyweight.model.memory import give_back
from pennyweight.model.stream import Block
from pennyweight.model.topology import Group
from pennyweight.model.workers import Workers
from pennyweight.pipeline.install import install
from pennyweight.pipeline.plan import Plan
from pennyweight.pipeline.recipe import Training
from pennyweight.pipeline.rescale import MOVED, Rescaling, rewritten
from pennyweight.pipeline.stage import relative_loss
from pennyweight.pipeline.survey import Survey
from pennyweight.pipeline.workdir import Finished
from pennyweight.train.base import Given, Learning, Link, Start
from pennyweight.train.loop import Stage, fit
from pennyweight.train.straight import StraightLinear, Tape

TRIAL = 2.0  # a scale by which it is tried whether a link lets one through: exact in any dtype
# How far a fold may move the block's output, relative to its norm: it is computed in float32.
FOLDED = MOVED[torch.float32]


@dataclass(frozen=True, kw_only=True)
class Before:
    """What is only to be seen while the block is not quantized."""

    samples: list[Sample] = field(default_factory=list)
    originals: list[Sample] = field(default_factory=list)  # their states are the original outputs
    outputs: list[Tensor] = field(default_factory=list)  # of the block, on inputs it has now
    links: dict[int, list[tuple[Group, Feed]]] = field(default_factory=dict)  # of each training


@dataclass(frozen=True)
class Trainings:
    """The trainings of a plan."""

    plan: Plan
    survey: Survey
    workers: Workers
    rescaling: Rescaling
    progress: Progress

    def originals(self, samples: list[Sample]) -> list[Sample]:
        """Samples that will pass through the original blocks, if any training compares with
        them."""
        if not any(training.make().target == "original" for training in self.plan.trainings):
            return []
        return [Sample(sample.hidden, sample.calls) for sample in samples]

    def look(self, block: Block, samples: list[Sample], originals: list[Sample]) -> Before:
        """Before anything is quantized: what the block computes, and where a scale can move.

        originals: after they passed the original block.
        """
        if not self.plan.trainings:
            return Before()
        if len(samples) < 2:
            raise DataError(
                f"{block.prefix[:-1]}: training needs 2 calibration samples or more, some to learn "
                f"from and some to judge by; found {len(samples)}"
            )
        made = [training.make() for training in self.plan.trainings]
        outputs = []
        if any(trainer.target == "same_input" for trainer in made):
            outputs = self.workers.map(lambda s: s.run(block.index, block.module), samples)
            if not all(map(is_finite, outputs)):
                raise NumericalError(f"{block.prefix[:-1]}: the output holds NaN or Inf")
        links = {
            index: list(self._links(block, training, samples[0]))
            for index, (trainer, training) in enumerate(zip(made, self.plan.trainings, strict=True))
            if trainer.links
        }
        return Before(samples=samples, originals=originals, outputs=outputs, links=links)

    def __call__(
        self, block: Block, before: Before, finished: list[Finished]
    ) -> tuple[list[Finished], list[str]]:
        """What is finished after the trainings, and what there is to say of them."""
        told = []
        for index, training in enumerate(self.plan.trainings):
            links = before.links.get(index, [])
            scene = Scene(self, block, before, training, links)
            finished, line = scene.train(finished)
            told += line
            for one in line:
                self.progress.say(one)
            give_back()
        return finished, told

    def is_meant(self, training: Training, block: Block, local: str) -> bool:
        """Whether a linear is quantized, and learned by this training."""
        site = self.survey.site(block.index, local)
        if site is None or site.tensor not in self.plan.by_tensor:
            return False
        return fnmatch.fnmatchcase(site.tensor, training.match)

    def _links(
        self, block: Block, training: Training, sample: Sample
    ) -> Iterator[tuple[Group, Feed]]:
        """Where a scale can move that is folded into learned weights and nothing else."""
        taken = set()
        for group, feed in self.rescaling.targets(block, training.match, sample).items():
            names = list(group.linears)
            if isinstance(block.module.get_submodule(feed.producer), nn.Linear):
                names.append(feed.producer)
            free = all(self.is_meant(training, block, name) for name in names)
            if not free or feed.producer in taken or self._is_static(block, group):
                continue
            if self._lets_through(block, group, feed, sample):
                taken.add(feed.producer)
                yield group, feed

    def _is_static(self, block: Block, group: Group) -> bool:
        """Whether the input's scale is fixed by now."""
        for name in group.linears:
            site = self.survey.site(block.index, name)
            assert site is not None
            activation = self.plan.scheme(self.plan.by_tensor[site.tensor]).activation
            if activation is not None and not activation.dynamic:
                return True
        return False

    def _lets_through(self, block: Block, group: Group, feed: Feed, sample: Sample) -> bool:
        expected, old = sample.run(block.index, block.module).float(), dict(block.changes)
        put = rewritten(block, group, feed, torch.full((len(feed.channels),), TRIAL))
        restore = {name: block.parameter(name) for name in put}
        block.put(put)
        moved = (sample.run(block.index, block.module).float() - expected).norm() / expected.norm()
        block.put(restore)
        block.changes = old
        return bool(moved <= MOVED[block.dtype])


@dataclass(frozen=True)
class Scene:
    """One training on one block."""

    trainings: Trainings
    block: Block
    before: Before
    training: Training
    links: list[tuple[Group, Feed]]

    def train(self, finished: list[Finished]) -> tuple[list[Finished], list[str]]:
        """Learn, fold, quantize, and keep it if the error on the judging samples is lower."""
        local = {one.tensor: self._local(one.tensor) for one in finished}
        meant = {
            local[one.tensor]: one for one in finished
            if self.trainings.is_meant(self.training, self.block, local[one.tensor])
        }  # fmt: skip
        if not meant:
            return finished, []
        trainer, old = self.training.make(), dict(self.block.changes)
        given = self._given(meant)
        where = f"{given.name}: {self.training.name}"
        seen = "held-out" if trainer.held_out else "output"
        with self._rehearsal({local[one.tensor]: one for one in finished}) as stage:
            start = stage.error()
            learning = trainer(given)
            fitted = fit(stage, learning, trainer, self.trainings.plan.seed)
            moved = self._fold(stage, given, learning, fitted.values)
            if moved > FOLDED:
                self.block.changes = old
                return finished, [f"{where}: left as it is, since the folded scales move it"]
            made = {
                name: learned.quantize(self.block.weight(name), fitted.values)
                for name, learned in learning.weights.items()
            }
            error = self._error(stage, {name: one.quantized for name, one in meant.items()} | made)
        if not error < start:
            self.block.changes = old
            return finished, [
                f"{where}: left as it is, since the {seen} error would go from {start:.4g} to "
                f"{error:.4g}"
            ]
        line = (
            f"{where}: {seen} error {start:.4g} -> {error:.4g} "
            f"(epoch {fitted.epoch} of {len(fitted.errors) - 1})"
        )
        return self._install(finished, made), [line]

    def _local(self, tensor: str) -> str:
        return self.trainings.survey.by_tensor[tensor].local

    def _given(self, meant: Mapping[str, Finished]) -> Given:
        block, plan = self.block, self.trainings.plan
        vectors = [n for n, p in block.module.named_parameters() if p.dim() == 1]
        vectors = [name for name in vectors if name in block.sources]
        links = [
            Link(
                producer=feed.producer, readers=group.linears, channels=feed.channels,
                size=len(block.parameter(f"{feed.producer}.weight")), offset=feed.offset,
            )
            for group, feed in self.links
        ]  # fmt: skip
        return Given(
            index=block.index, depth=len(self.trainings.survey.topologies), seed=plan.seed,
            name=block.prefix[:-1],
            linears={
                name: Start(
                    weight=block.weight(name), quantized=one.quantized,
                    format=plan.scheme(plan.by_tensor[one.tensor]).weight,
                )
                for name, one in meant.items()
            },
            vectors={name: block.parameter(name) for name in vectors},
            dtypes={name: block.stored_dtype(name) for name in vectors}, links=tuple(links),
        )  # fmt: skip

    @contextmanager
    def _rehearsal(self, finished: Mapping[str, Finished]) -> Iterator[Stage]:
        """The block in float32 with taped linears in it, for the length of a `with` block."""
        module, tape, linears = self.block.module, Tape(), {}
        originals = {name: module.get_submodule(name) for name in finished}
        for name, original in originals.items():
            assert isinstance(original, nn.Linear)
            linears[name] = StraightLinear(original, name, tape)
            linears[name].weight.copy_(finished[name].quantized.dequantize())
            self.block.replace(name, linears[name])
        kept = {
            name: parameter.detach() for name, parameter in module.named_parameters()
            if name.rpartition(".")[0] not in finished
        }  # fmt: skip
        set_parameters(module, {name: value.float() for name, value in kept.items()})
        before, trainer = self.before, self.training.make()
        same = trainer.target == "same_input"
        targets = before.outputs if same else [sample.hidden for sample in before.originals]
        try:
            yield Stage(
                name=self.block.prefix[:-1], index=self.block.index, module=module,
                linears=linears, tape=tape, samples=before.samples, targets=targets,
                workers=self.trainings.workers, held_out=trainer.held_out,
            )  # fmt: skip
        finally:
            for name, original in originals.items():
                self.block.replace(name, original)
            set_parameters(module, kept)

    def _fold(
        self, stage: Stage, given: Given, learning: Learning, values: dict[str, Tensor]
    ) -> float:
        """Put what was learned into the block's changes; how far scales move the output of the
        block before it is quantized, relative to its norm."""
        with torch.no_grad():
            scales, vectors = learning.scales(values), learning.vectors(values)
        if not scales:
            self._change(vectors)
            return 0.0
        expected = self._unquantized(stage, given)
        for index, scale in scales.items():
            self._change(rewritten(self.block, *self.links[index], scale))
        return ((self._unquantized(stage, given) - expected).norm() / expected.norm()).item()

    def _change(self, values: dict[str, Tensor]) -> None:
        """The module follows when what was learned is kept."""
        storable = self.trainings.rescaling.storable
        self.block.changes |= {n: storable(self.block, n, v) for n, v in values.items()}

    def _unquantized(self, stage: Stage, given: Given) -> Tensor:
        """The output of a sample, with the learned linears as they are before quantization."""
        rounding = {name: linear.activation for name, linear in stage.linears.items()}
        for name in given.linears:
            stage.linears[name].weight.copy_(self.block.weight(name))
        for linear in stage.linears.values():
            linear.activation = None
        self._place_vectors(stage, given.vectors)
        with torch.no_grad():
            out = stage.run(0)
        for name, linear in stage.linears.items():
            linear.activation = rounding[name]
        return out

    def _place_vectors(self, stage: Stage, names: Mapping[str, Tensor]) -> None:
        set_parameters(stage.module, {name: self.block.parameter(name) for name in names})

    def _error(self, stage: Stage, quantized: Mapping[str, Quantized]) -> float:
        for name, one in quantized.items():
            stage.linears[name].weight.copy_(one.dequantize())
        names = {name: value for name, value in self.block.changes.items() if value.dim() == 1}
        self._place_vectors(stage, names)
        return stage.error()

    def _install(self, finished: list[Finished], made: Mapping[str, Quantized]) -> list[Finished]:
        """Compute with it from here on."""
        block, plan = self.block, self.trainings.plan
        block.reopen()
        block.put({n: v for n, v in block.changes.items() if v.dim() == 1})
        result = []
        for one in finished:
            if (new := made.get(self._local(one.tensor))) is not None:
                weight, rounded = block.weight(self._local(one.tensor)), new.dequantize()
                loss, metric = relative_loss(weight, rounded, Stats())
                scheme = plan.scheme(plan.by_tensor[one.tensor])
                install(block, self._local(one.tensor), rounded, scheme, one.input_scale)
                notes = {**new.notes, "trained": self.training.name}
                one = dataclasses.replace(
                    one, quantized=dataclasses.replace(new, notes=notes), loss=loss, metric=metric
                )
            result.append(one)
        return result
