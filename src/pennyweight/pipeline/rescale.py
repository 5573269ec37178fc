"""Carry out the transforms of a plan on one block, before anything in it is quantized."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pennyweight.core import PennyweightError
from pennyweight.model.capture import Sample
from pennyweight.model.feeds import Feed, find_feed, scale_parameter
from pennyweight.model.stream import Block
from pennyweight.model.topology import Group
from pennyweight.model.workers import Workers
from pennyweight.observe.collect import Collector
from pennyweight.pipeline.plan import Plan
from pennyweight.pipeline.shards import SHARD
from pennyweight.pipeline.survey import Survey
from pennyweight.transform.base import Consumers, Transform
from pennyweight.transform.judge import output_error

TOKENS = 256  # inputs on which a scale is judged
# How far the block's output may move, relative to its norm: rounding of the dtype it computes in.
MOVED = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@dataclass
class Rescaling:
    """The transforms of a plan. Where they apply is found anew on each block: what is remembered
    of another would depend on where an interrupted run began again."""

    plan: Plan
    survey: Survey
    workers: Workers
    _feeds: dict[tuple[int, str], Feed | None] = field(default_factory=dict)

    def __call__(self, block: Block, samples: list[Sample]) -> Iterator[str]:
        """Rewrite the block's parameters; yields what there is to say of it."""
        for rewrite in self.plan.transforms:
            targets = self.targets(block, rewrite.match, samples[0])
            make = rewrite.make()
            for group, consumers in self._observe(block, list(targets), make, samples):
                try:
                    yield self._apply(block, group, targets[group], make, consumers, samples[0])
                except PennyweightError as error:
                    raise type(error)(f"{block.prefix}{group.linears[0]}: {error}") from None

    def targets(self, block: Block, match: str, sample: Sample) -> dict[Group, Feed]:
        """Groups with a linear that matches and will be quantized, and what feeds them."""
        return {group: feed for group in block.topology.groups
                if self._is_meant(block, group, match)
                and (feed := self._feed(block, group, sample))}  # fmt: skip

    def storable(self, block: Block, name: str, value: Tensor) -> Tensor:
        """What a reader of the files will find, unless the value is yet to be quantized."""
        if block.sources[name].key in self.plan.by_tensor:
            return value
        return value.to(block.stored_dtype(name)).float()

    def changed(self, block: Block) -> dict[str, Tensor]:
        """Checkpoint tensor -> its new values, of what was rewritten and is not quantized."""
        planned, found = self.plan.by_tensor, {}
        for name, value in block.changes.items():
            source = block.sources[name]
            if source.key not in planned:
                stored = value.to(block.stored_dtype(name))
                found[source.key] = stored.T.contiguous() if source.transposed else stored
        return found

    def _is_meant(self, block: Block, group: Group, match: str) -> bool:
        """Whether a linear of the group matches and will be quantized."""
        sites = [self.survey.site(block.index, name) for name in group.linears]
        planned = [s.tensor for s in sites if s is not None and s.tensor in self.plan.by_tensor]
        return any(fnmatch.fnmatchcase(tensor, match) for tensor in planned)

    def _feed(self, block: Block, group: Group, sample: Sample) -> Feed | None:
        """From the norm that feeds the group, else from the nearest linear before it."""
        key = block.index, group.linears[0]
        if key not in self._feeds:
            observe = lambda: block.inputs([group], [sample], self.workers)[0]
            seen = observe()  # nothing for an expert that the sample did not reach
            names = candidates(block, group) if seen and len(seen[0]) else ()
            found = (find_feed(block.module, name, lambda: observe()[0]) for name in names)
            self._feeds[key] = next((feed for feed in found if feed), None)
        return self._feeds[key]

    def _observe(
        self, block: Block, groups: list[Group], make: Transform, samples: list[Sample]
    ) -> Iterator[tuple[Group, Consumers]]:
        """One pass over the block as it is now, for all groups together."""
        collectors = {group: Collector(make.needs | {"absmax"}, self.workers) for group in groups}
        first: dict[Group, Tensor] = {}
        for start in range(0, len(samples) if groups else 0, SHARD):
            inputs = block.inputs(groups, samples[start : start + SHARD], self.workers)
            for group, seen in zip(groups, inputs, strict=True):
                collectors[group].add(seen)
                if seen and len(seen[0]):
                    first.setdefault(group, seen[0])
        for group, seen in first.items():
            spread = torch.linspace(0, len(seen) - 1, min(TOKENS, len(seen))).long()
            yield group, Consumers(
                weights=tuple(block.weight(name) for name in group.linears),
                schemes=tuple(self._scheme(block, name) for name in group.linears),
                stats=collectors[group].stats(), inputs=seen[spread].float(),
            )  # fmt: skip

    def _scheme(self, block: Block, name: str):
        site = self.survey.site(block.index, name)
        task = self.plan.by_tensor.get(site.tensor) if site else None
        return self.plan.scheme(task) if task else None

    def _apply(
        self, block: Block, group: Group, feed: Feed, make: Transform, consumers: Consumers,
        sample: Sample,
    ) -> str:  # fmt: skip
        where = f"{block.prefix}{feed.producer} -> {', '.join(group.linears)}"
        scale = self._shared(make(consumers), feed, block, group)
        before, after = (output_error(consumers, s) for s in (torch.ones_like(scale), scale))
        if not after < before:
            return (
                f"{where}: left as it is, since the error would go from {before:.3g} to {after:.3g}"
            )
        expected, old = sample.run(block.index, block.module).float(), dict(block.changes)
        put = rewritten(block, group, feed, scale)
        put = {name: self.storable(block, name, value) for name, value in put.items()}
        restore = {name: block.parameter(name) for name in put}
        block.put(put)
        moved = (sample.run(block.index, block.module).float() - expected).norm() / expected.norm()
        if not moved <= MOVED[block.dtype]:
            block.put(restore)
            block.changes = old
            return f"{where}: left as it is, since {feed.producer} feeds more than these"
        return f"{where}: error on sampled inputs {before:.3g} -> {after:.3g}"

    def _shared(self, scale: Tensor, feed: Feed, block: Block, group: Group) -> Tensor:
        """One scale for all channels that come from one channel, exact where it is stored.

        The largest of them: none of the inputs grows. What is not quantized is stored in 16 bits,
        and only powers of two leave its digits as they are.
        """
        size = block.parameter(f"{feed.producer}.weight").shape[0]
        largest = torch.zeros(size).scatter_reduce(0, feed.channels, scale, "amax")[feed.channels]
        names = list(group.linears)
        if isinstance(block.module.get_submodule(feed.producer), nn.Linear):
            names.append(feed.producer)
        if any(self._scheme(block, name) is None for name in names):
            return largest.log2().round().exp2()
        return largest


def candidates(block: Block, group: Group) -> Iterator[str]:
    """Where a group's input may come from: the leaf that wrote it, then earlier linears.

    Of an expert's input only that expert's own.
    """
    if group.producer is not None:
        yield group.producer
    expert = _expert(group.linears[0])
    earlier = block.topology.linears[: block.topology.linears.index(group.linears[0])]
    yield from (name for name in reversed(earlier) if _expert(name) == expert)


def _expert(name: str) -> str:
    """The path to the numbered module that a linear of an expert belongs to; "" for others."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1]) if numbers else ""


def rewritten(block: Block, group: Group, feed: Feed, scale: Tensor) -> dict[str, Tensor]:
    """New values of all parameters that a scale [in] touches.

    A gain is rounded to its dtype first, and the weights are multiplied by what then arrives.
    """
    producer, new = block.module.get_submodule(feed.producer), {}
    weight = block.parameter(f"{feed.producer}.weight")
    divide = torch.ones(weight.shape[0]).scatter(0, feed.channels, 1 / scale)
    if not isinstance(producer, nn.Linear):
        stored = block.stored_dtype(f"{feed.producer}.weight")
        gain = scale_parameter(weight, divide, feed.offset).to(stored).float()
        divide = ((gain + feed.offset) / (weight + feed.offset)).nan_to_num(nan=1.0)
        divide = divide.where(divide > 0, 1.0)
    for name, _ in producer.named_parameters(recurse=False):
        key = f"{feed.producer}.{name}"
        new[key] = scale_parameter(block.parameter(key), divide, feed.offset)
    for linear in group.linears:
        new[f"{linear}.weight"] = block.weight(linear) / divide[feed.channels]
    return new
