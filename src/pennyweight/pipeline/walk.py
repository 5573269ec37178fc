"""Calibration samples on their way past the blocks of a model, and the sums of what they meet.

Samples go in shards of a fixed size. The sums of a shard are those of its samples added up in
order, and those of the whole are the shards' added up in order, whoever walked them: the numbers
depend neither on threads nor on processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from pennyweight.core import NumericalError, Progress
from pennyweight.model.capture import Sample, capture
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.memory import give_back, peak_bytes
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.stream import Block
from pennyweight.model.topology import Group
from pennyweight.model.workers import Workers, start_workers
from pennyweight.observe.profile import Sums, observe_profile
from pennyweight.pipeline.shards import SHARD
from pennyweight.pipeline.survey import Survey, survey


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The samples of one calibration set."""

    ids: Int64[Tensor, "samples tokens"]
    first: Bool[Tensor, "samples tokens"]  # which tokens are kept apart

    @property
    def shards(self) -> int:
        return -(-len(self.ids) // SHARD)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An activation, and its sums over some samples of each set."""

    name: str  # the linears that read it, or what it is a residual stream of
    block: int  # the number of blocks, after the last one
    kind: str  # input, of linears, or residual
    sums: Mapping[str, Sums]  # by set; without a set of which no token came here
    energy: Tensor | None = None  # of each channel: the squares of the weights that read it

    def merge(self, other: Seen, sets: Iterable[str]) -> Seen:
        """The sums over both, in the order of the sets."""
        both = {name: [s.sums[name] for s in (self, other) if name in s.sums] for name in sets}
        return Seen(
            name=self.name, block=self.block, kind=self.kind,
            energy=other.energy if self.energy is None else self.energy,
            sums={name: added(parts) for name, parts in both.items() if parts},
        )  # fmt: skip


def added(parts: Iterable[Sums]) -> Sums:
    """In order, from the left."""
    return reduce(Sums.merge, parts)


@dataclass(kw_only=True)
class Walk:
    """Numbers of shards -> what their samples met. It can be sent to another process."""

    path: Path  # of the model; every process must see the same one
    sets: Mapping[str, Rows]
    trust_remote_code: bool = False
    threads: int | None = None
    survey: Survey | None = None  # of the model, where this process has looked at it already
    progress: Progress | None = None

    @property
    def shards(self) -> range:
        return range(max(rows.shards for rows in self.sets.values()))

    def __call__(self, shards: Sequence[int]) -> list[Seen]:
        return list(self.along(shards))

    def along(self, shards: Sequence[int]) -> Iterator[Seen]:
        """The same, one by one: in memory is one block, and of these samples the hidden states.

        Raises NumericalError naming the activation that holds NaN or Inf.
        """
        if self.survey is None:
            skeleton = Skeleton.build(Checkpoint.open(self.path), self.trust_remote_code)
            self.survey = survey(skeleton)
        with start_workers(self.threads) as workers:
            yield from _Passage(self.survey, workers, self.progress or Progress()).of(
                self.sets, shards
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"survey": None, "progress": None}


def added_up(parts: Iterable[list[Seen]], sets: Iterable[str]) -> list[Seen]:
    """What all shards met; each is let go once it is added."""
    names, whole = list(sets), None
    for part in parts:
        if whole is None:
            whole = part
        else:
            whole = [a.merge(b, names) for a, b in zip(whole, part, strict=True)]
    return whole or []


Shard = tuple[list[Sample], list[Tensor]]  # samples, and which of their tokens are kept apart


@dataclass(frozen=True)
class _Passage:
    survey: Survey
    workers: Workers
    progress: Progress

    def of(self, sets: Mapping[str, Rows], shards: Sequence[int]) -> Iterator[Seen]:
        count = len(self.survey.topologies)
        dtype = compute_dtype(self.survey.skeleton)
        taken = {name: list(self._taken(rows, shards, dtype)) for name, rows in sets.items()}
        self.progress.begin(blocks=count, done=0, linears=0)
        for index, topology in enumerate(self.survey.topologies):
            block = Block(self.survey.skeleton, index, topology, dtype)
            with block.loaded():
                yield self._residual(taken, f"{block.prefix[:-1]} (residual in)", index)
                yield from self._inputs(block, taken)
                for parts in taken.values():
                    block.advance([s for samples, _ in parts for s in samples], self.workers)
            self.progress.block(index=index, peak_bytes=peak_bytes())
            give_back()
        yield self._residual(taken, "after the last block (residual)", count)

    def _taken(self, rows: Rows, shards: Sequence[int], dtype: torch.dtype) -> Iterator[Shard]:
        for number in shards:
            part = slice(number * SHARD, (number + 1) * SHARD)
            if len(rows.ids[part]):  # a set may be shorter than another one
                samples = capture(self.survey.skeleton, rows.ids[part], dtype)
                yield samples, list(rows.first[part])

    def _residual(self, taken: Mapping[str, list[Shard]], name: str, index: int) -> Seen:
        sums = {
            key: added(self._sums([s.hidden[0] for s in samples], f, name) for samples, f in parts)
            for key, parts in taken.items()
            if parts
        }
        return Seen(name=name, block=index, kind="residual", sums=sums)

    def _inputs(self, block: Block, taken: Mapping[str, list[Shard]]) -> Iterator[Seen]:
        groups = block.topology.groups
        found: list[dict[str, Sums]] = [{} for _ in groups]
        for key, parts in taken.items():
            for samples, first in parts:
                inputs = block.inputs(groups, samples, self.workers)
                for sums, group, seen in zip(found, groups, inputs, strict=True):
                    if any(len(x) for x in seen):  # else an expert that no token was sent to
                        name = f"{block.prefix}{group.linears[0]}"
                        part = self._sums(seen, _masks(seen, first), name)
                        sums[key] = sums[key].merge(part) if key in sums else part
        for sums, group in zip(found, groups, strict=True):
            yield _input(block, group, sums)

    def _sums(self, inputs: Sequence[Tensor], first: Sequence[Tensor], name: str) -> Sums:
        """Added up in the order of the samples, whatever the number of threads."""
        tasks = list(zip(inputs, first, strict=True))
        try:
            return added(self.workers.map(lambda task: observe_profile(*task), tasks))
        except NumericalError as error:
            raise NumericalError(f"{name}: {error}") from None


def _input(block: Block, group: Group, sums: Mapping[str, Sums]) -> Seen:
    return Seen(
        name=f"{block.prefix}{', '.join(group.linears)}", block=block.index, kind="input",
        sums=sums, energy=block.weights(group.linears).square().sum(0) if sums else None,
    )  # fmt: skip


def _masks(seen: list[Tensor], first: list[Tensor]) -> list[Tensor]:
    """Which tokens are kept apart. Of those that were sent to an expert nobody knows; none is."""
    if [len(x) for x in seen] == [len(mask) for mask in first]:
        return first
    return [torch.zeros(len(x), dtype=torch.bool) for x in seen]


def compute_dtype(skeleton: Skeleton) -> torch.dtype:
    """As for quantizing: bfloat16 where the checkpoint is, else float32."""
    return torch.bfloat16 if skeleton.dtype is torch.bfloat16 else torch.float32
