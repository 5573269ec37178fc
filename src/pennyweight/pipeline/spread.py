"""The shards of a run, shared out among the processes of an engine.

Every process sees the model and the work directory under the same paths. Where a shard is lies in a
file there, and so does what is settled of a block that is not finished; what a process remembers
beyond that only saves time. So whoever is free takes the next shard, a process that dies loses
nothing, and an interrupted run goes on from the last block that all shards had reached.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from pennyweight.core import CheckpointError, Stats
from pennyweight.model.capture import Sample, capture
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.engine import Engine
from pennyweight.model.prompt import Prompt
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.stream import Block
from pennyweight.model.topology import Group
from pennyweight.model.workers import Workers, start_workers
from pennyweight.model.writer import Entry, disk_errors, write_safetensors
from pennyweight.pipeline.install import install, restore
from pennyweight.pipeline.plan import Plan
from pennyweight.pipeline.shards import SHARD, Here, Needs
from pennyweight.pipeline.survey import Survey, survey
from pennyweight.pipeline.workdir import Finished, WorkDir

FOLDER = "shards"  # in the work directory
Rows = Tensor | Sequence[Prompt]


def held_together(plan: Plan) -> str:
    """Why the samples of a plan must stay in one process; nothing if they need not."""
    for each in (*plan.transforms, *plan.trainings):
        return f"{each.name} looks at all samples of a block at once: they are not shared out"
    return ""


@dataclass(frozen=True, kw_only=True)
class Leg:
    """What a shard is to do next."""

    shard: int
    block: int
    settled: int = 0  # so many stages of the block are over
    needs: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By the first linear of each group that is to be observed. Nothing: on to the next block."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """The files of shards and of unfinished blocks."""

    folder: Path

    def states(self, block: int, shard: int) -> Path:
        return self.folder / f"states_{block:05}_{shard:05}.safetensors"

    def stage(self, block: int, number: int) -> Path:
        return self.folder / f"block_{block:05}_stage_{number}.safetensors"

    def read(self, file: Path) -> dict[str, Tensor]:
        """Each tensor in memory of its own: products of what is aligned otherwise may be rounded
        otherwise. Raises CheckpointError if the file is not there."""
        try:
            return {name: tensor.clone() for name, tensor in load_file(file).items()}
        except FileNotFoundError:
            raise CheckpointError(
                f"{file}: is not there; every process of an engine must see the work directory "
                "under the same path"
            ) from None


@dataclass(kw_only=True)
class Carry:
    """Leg -> what the shard met, by the first linear of each group. It can be sent to another
    process, where it keeps the block that it is at."""

    path: Path  # of the model
    work: WorkDir
    rows: Rows
    threads: int | None
    _block: Block | None = None
    _open: ExitStack = field(default_factory=ExitStack)
    _settled: int = 0
    _installed: set[str] = field(default_factory=set)
    _samples: dict[int, list[Sample]] = field(default_factory=dict)  # of the block, by shard
    _captured: dict[int, list[Sample]] = field(default_factory=dict)  # before the first block

    def __call__(self, leg: Leg) -> dict[str, Stats]:
        with start_workers(self.threads) as workers:
            block = self._opened(leg.block)
            samples = self._at(leg)
            if leg.needs:
                self._settle(block, leg.settled)
                return self._observe(block, samples, leg, workers)
            if self.work.is_done(block.index):  # else nothing of it is quantized
                restore(block, self.work, self.survey, but=self._installed)
                self._installed.update(self.work.facts(block.index))
            before = [sample.hidden for sample in samples]
            block.advance(samples, workers)
            entries = [Entry.of(str(i), sample.hidden) for i, sample in enumerate(samples)]
            write_safetensors(self.places.states(leg.block + 1, leg.shard), entries, {})
            for sample, hidden in zip(samples, before, strict=True):
                sample.hidden = hidden  # so that the same leg gives the same file again
            return {}

    @cached_property
    def survey(self) -> Survey:
        trusted = self.work.plan.trust_remote_code
        return survey(Skeleton.build(Checkpoint.open(self.path), trusted))

    @property
    def places(self) -> Places:
        return Places(folder=self.work.path / FOLDER)

    def _opened(self, index: int) -> Block:
        if self._block is None or self._block.index != index:
            self._open.close()
            topology = self.survey.topologies[index]
            self._block = Block(
                self.survey.skeleton, index, topology, self.work.plan.compute_dtype, self.work.path
            )
            self._open.enter_context(self._block.loaded())
            self._settled, self._installed, self._samples = 0, set(), {}
            if index:  # states are read from files, and of what was captured only the calls count
                for sample in (sample for shard in self._captured.values() for sample in shard):
                    sample.hidden = sample.hidden[:, :0]
        return self._block

    def _settle(self, block: Block, stages: int) -> None:
        plan = self.work.plan
        for number in range(self._settled, stages):
            parts = self.places.read(self.places.stage(block.index, number))
            groups = block.topology.stages[number]
            for local in (name for group in groups for name in group.linears):
                if (weight := parts.get(f"{local}.weight")) is not None:
                    site = self.survey.site(block.index, local)
                    assert site is not None, "only linears that are sites are quantized"
                    scheme = plan.scheme(plan.by_tensor[site.tensor])
                    install(block, local, weight, scheme, parts.get(f"{local}.input_scale"))
                    self._installed.add(site.tensor)
            block.settle(groups)
        self._settled = max(self._settled, stages)

    def _at(self, leg: Leg) -> list[Sample]:
        """The samples of the shard, before the block."""
        if leg.shard not in self._samples:
            start = leg.shard * SHARD
            if leg.shard not in self._captured:
                rows = self.rows[start : start + SHARD]
                self._captured[leg.shard] = capture(
                    self.survey.skeleton, rows, self.work.plan.compute_dtype
                )
            samples = [Sample(s.hidden, s.calls) for s in self._captured[leg.shard]]
            if leg.block:
                states = self.places.read(self.places.states(leg.block, leg.shard))
                for number, sample in enumerate(samples):
                    sample.hidden = states[str(number)]
            self._samples[leg.shard] = samples
        return self._samples[leg.shard]

    def _observe(
        self, block: Block, samples: list[Sample], leg: Leg, workers: Workers
    ) -> dict[str, Stats]:
        groups = {group.linears[0]: group for group in block.topology.groups}
        needs = {groups[name]: fields for name, fields in leg.needs.items()}
        found = Here(samples, workers).observe(block, needs)
        return {group.linears[0]: stats for group, stats in found.items()}

    def __getstate__(self) -> dict[str, Any]:
        sent = ("path", "work", "rows", "threads")
        return {name: self.__dict__[name] for name in sent}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


@dataclass(kw_only=True)
class There:
    """The shards of a run, in the processes of an engine."""

    engine: Engine
    carry: Carry
    survey: Survey
    _settled: int = 0  # stages of the block they are at

    def __post_init__(self) -> None:
        with disk_errors(self.carry.places.folder):
            self.carry.places.folder.mkdir(exist_ok=True)

    @property
    def is_empty(self) -> bool:
        return False

    @property
    def count(self) -> int:
        return -(-len(self.carry.rows) // SHARD)

    @cached_property
    def reached(self) -> int:
        """The last block before which all shards were when the run was interrupted."""
        blocks = range(len(self.survey.topologies), 0, -1)
        return next((block for block in blocks if self._are_at(block)), 0)

    def _are_at(self, block: int) -> bool:
        places = self.carry.places
        return all(places.states(block, shard).exists() for shard in range(self.count))

    def loaded(self, block: Block) -> AbstractContextManager[None]:
        return nullcontext()

    def observe(self, block: Block, needs: Needs) -> dict[Group, Stats]:
        wanted = {group.linears[0]: fields for group, fields in needs.items()}
        whole: dict[Group, Stats] = {}
        for found in self._legs(block.index, settled=self._settled, needs=wanted):
            for group in needs:
                part = found[group.linears[0]]
                whole[group] = whole[group].merge(part) if group in whole else part
        return whole

    def _legs(self, block: int, **how: Any) -> Iterator[dict[str, Stats]]:
        legs = [Leg(shard=shard, block=block, **how) for shard in range(self.count)]
        return self.engine.map(self.carry, legs)

    def settle(self, block: Block, groups: Sequence[Group], finished: Sequence[Finished]) -> None:
        entries = []
        for one in finished:
            local = self.survey.by_tensor[one.tensor].local
            weight = one.quantized.dequantize().to(block.dtype)
            entries.append(Entry.of(f"{local}.weight", weight))
            if one.input_scale is not None:
                entries.append(Entry.of(f"{local}.input_scale", one.input_scale))
        write_safetensors(self.carry.places.stage(block.index, self._settled), entries, {})
        self._settled += 1

    def advance(self, block: Block) -> None:
        if block.index >= self.reached:
            for _ in self._legs(block.index):
                pass
            self._forget(block.index)
        self._settled = 0

    def _forget(self, block: int) -> None:
        for pattern in (f"states_{block:05}_*", f"block_{block:05}_*"):
            for file in self.carry.places.folder.glob(pattern):
                file.unlink()

    def states(self) -> list[Sample]:
        samples = capture(self.survey.skeleton, self.carry.rows, self.carry.work.plan.compute_dtype)
        for number, sample in enumerate(samples):
            file = self.carry.places.states(len(self.survey.topologies), number // SHARD)
            sample.hidden = self.carry.places.read(file)[str(number % SHARD)]
        return samples

    def close(self) -> None:
        with disk_errors(self.carry.places.folder):
            shutil.rmtree(self.carry.places.folder)
