"""The calibration samples of a run on their way through the blocks, and the sums of what they meet.

Samples go in shards of a fixed size. What a shard meets is summed by itself, and the sums are added
in the order of the shards: whoever summed them, the bits are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from pennyweight.core import PennyweightError, Stats
from pennyweight.model.capture import Sample
from pennyweight.model.memory import give_back
from pennyweight.model.stream import Block
from pennyweight.model.topology import Group
from pennyweight.model.workers import Workers
from pennyweight.observe.collect import Collector
from pennyweight.pipeline.workdir import Finished

SHARD = 4  # samples whose inputs are held at once: bounds memory, and is the order of the sums
Needs = Mapping[Group, frozenset[str]]  # the fields of Stats that are asked for


@runtime_checkable
class Shards(Protocol):
    """All samples of a run, wherever they are."""

    @property
    def is_empty(self) -> bool:
        """Whether there are no samples, so that no block need be run."""
        ...

    def loaded(self, block: Block) -> AbstractContextManager[None]:
        """The block with its weights in memory, if this process runs samples through it."""
        ...

    def observe(self, block: Block, needs: Needs) -> dict[Group, Stats]:
        """What the inputs of the groups are now. Raises NumericalError for NaN or Inf."""
        ...

    def settle(self, block: Block, groups: Sequence[Group], finished: Sequence[Finished]) -> None:
        """A stage is over: its linears will not change any more."""
        ...

    def advance(self, block: Block) -> None:
        """To the next block, whose inputs are the outputs of this one. Its file must be there, if
        any of it is quantized."""
        ...

    def states(self) -> list[Sample]:
        """Where the samples are now."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


@dataclass(frozen=True)
class Here:
    """All samples in this process."""

    samples: list[Sample]
    workers: Workers

    @property
    def is_empty(self) -> bool:
        return not self.samples

    def loaded(self, block: Block) -> AbstractContextManager[None]:
        return block.loaded() if self.samples else nullcontext()

    def observe(self, block: Block, needs: Needs) -> dict[Group, Stats]:
        groups = list(needs)
        collectors = {group: Collector(needs[group], self.workers) for group in groups}
        for start in range(0, len(self.samples), SHARD):
            part = block.inputs(groups, self.samples[start : start + SHARD], self.workers)
            for group, inputs in zip(groups, part, strict=True):
                add(collectors[group], inputs, block, group)
            del part
        give_back()  # what the passes left behind is not needed while the stage is solved
        return {group: collector.stats() for group, collector in collectors.items()}

    def settle(self, block: Block, groups: Sequence[Group], finished: Sequence[Finished]) -> None:
        block.settle(groups)

    def advance(self, block: Block) -> None:
        block.advance(self.samples, self.workers)

    def states(self) -> list[Sample]:
        return self.samples

    def close(self) -> None:
        pass


def add(collector: Collector, inputs: list[Tensor], block: Block, group: Group) -> None:
    """Raises NumericalError with the name of the group."""
    try:
        collector.add(inputs)
    except PennyweightError as error:
        raise type(error)(f"{block.prefix}{group.linears[0]}: {error}") from None
