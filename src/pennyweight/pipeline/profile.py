"""The verb `profile`: what a model's activations look like, on one calibration set or on several.

One walk over the blocks: of the model one block is in memory at a time, and of each set its hidden
states.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pennyweight.core import DataError, NumericalError, Progress
from pennyweight.model.capture import Sample, capture
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.memory import give_back, peak_bytes
from pennyweight.model.resolve import resolve_model
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.stream import Block
from pennyweight.model.text import Calibration
from pennyweight.model.workers import Workers, start_workers
from pennyweight.observe.portrait import Likeness, Portrait, compare, portray
from pennyweight.observe.profile import Sums, observe_profile
from pennyweight.pipeline.job import draw_for, tokenizer_for
from pennyweight.pipeline.recipe import Calibrate, check_calibration
from pennyweight.pipeline.survey import Survey, survey

CHUNK = 4  # samples whose inputs are held at once


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How every set is drawn; fields as in a recipe."""

    samples: int = 32
    tokens: int = 512
    seed: int = 0
    split_at: str | None = None
    chat_template: bool = False
    trust_remote_code: bool = False

    def of(self, name: str) -> Calibrate:
        return Calibrate(
            data=(name,), samples=self.samples, tokens=self.tokens, split_at=self.split_at,
            chat_template=self.chat_template,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Place:
    """An activation of the model, and what was seen of it on each set."""

    name: str  # the linears that read it, or what it is a residual stream of
    block: int  # the number of blocks, after the last one
    kind: str  # input, of linears, or residual
    portraits: dict[str, Portrait]  # by calibration set
    likeness: dict[str, Likeness]  # of every other set to the first


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What `profile` found."""

    model: str
    calibration: dict[str, dict[str, Any]]  # set -> how its token ids came about
    places: tuple[Place, ...]
    outlier_features: dict[str, tuple[int, ...]]  # set -> by LLM.int8()'s rule, see there

    @property
    def inputs(self) -> list[Place]:
        return [place for place in self.places if place.kind == "input"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not a number is null."""
        return _plain(dataclasses.asdict(self))


@dataclass(frozen=True, kw_only=True)
class _Set:
    """One calibration set on its way through the blocks."""

    name: str
    calibration: Calibration
    samples: list[Sample]
    first: list[Tensor]  # of each sample, which of its tokens are kept apart


def profile(
    model: str,
    sets: Sequence[str],
    sampling: Sampling | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Look at every input of a linear and at the residual stream, on each set by itself.

    Raises DataError for a set that is named twice or cannot be used, NumericalError for NaN or Inf.
    """
    sampling = sampling or Sampling()
    if not sets or len(set(sets)) < len(sets):
        raise DataError(f"profile: sets: expected one or more different ones, found {list(sets)}")
    path, progress, trusted = (
        resolve_model(model),
        progress or Progress(),
        sampling.trust_remote_code,
    )
    check_calibration(sampling.of(sets[0]), sampling.seed, "profile")
    skeleton = Skeleton.build(Checkpoint.open(path), trusted)
    seen = survey(skeleton)
    drawn = {
        name: draw_for(path, skeleton, sampling.of(name), sampling.seed, trusted) for name in sets
    }
    tokenizer: Any = tokenizer_for(path, sets, trusted)
    bos = tokenizer.bos_token_id if tokenizer else None
    with start_workers(threads) as workers:
        walk = _Walk(seen, _dtype(skeleton), workers, progress)
        places = tuple(walk([walk.set(name, rows, bos) for name, rows in drawn.items()]))
    return Profile(
        model=model,
        calibration={name: rows.description for name, rows in drawn.items()},
        places=places,
        outlier_features={name: outlier_features(places, name) for name in sets},
    )


def _dtype(skeleton: Skeleton) -> torch.dtype:
    """As for quantizing: bfloat16 where the checkpoint is, else float32."""
    return torch.bfloat16 if skeleton.dtype is torch.bfloat16 else torch.float32


@dataclass(frozen=True)
class _Walk:
    survey: Survey
    dtype: torch.dtype
    workers: Workers
    progress: Progress

    def set(self, name: str, calibration: Calibration, bos: int | None) -> _Set:
        ids = calibration.ids
        first = ids == (-1 if bos is None else bos)
        first[:, 0] = True
        samples = capture(self.survey.skeleton, ids, self.dtype)
        return _Set(name=name, calibration=calibration, samples=samples, first=list(first))

    def __call__(self, sets: list[_Set]) -> Iterator[Place]:
        count = len(self.survey.topologies)
        self.progress.begin(blocks=count, done=0, linears=0)
        for index, topology in enumerate(self.survey.topologies):
            block = Block(self.survey.skeleton, index, topology, self.dtype)
            with block.loaded():
                yield self._residual(sets, f"{block.prefix[:-1]} (residual in)", index)
                yield from self._inputs(block, sets)
                for each in sets:
                    block.advance(each.samples, self.workers)
            self.progress.block(index=index, peak_bytes=peak_bytes())
            give_back()
        yield self._residual(sets, "after the last block (residual)", count)

    def _residual(self, sets: list[_Set], name: str, index: int) -> Place:
        sums = {}
        for each in sets:
            tasks = [
                (s.hidden[0], first) for s, first in zip(each.samples, each.first, strict=True)
            ]
            sums[each.name] = self._sums(tasks, name)
        return _place(name, index, "residual", sums, None)

    def _inputs(self, block: Block, sets: list[_Set]) -> Iterator[Place]:
        groups = block.topology.groups
        found: list[dict[str, Sums]] = [{} for _ in groups]
        for each in sets:
            for start in range(0, len(each.samples), CHUNK):
                chunk = slice(start, start + CHUNK)
                inputs = block.inputs(groups, each.samples[chunk], self.workers)
                for sums, group, seen in zip(found, groups, inputs, strict=True):
                    name = f"{block.prefix}{group.linears[0]}"
                    tasks = list(zip(seen, _masks(seen, each.first[chunk]), strict=True))
                    if not any(len(x) for x in seen):
                        continue  # an expert that these samples did not reach
                    part = self._sums(tasks, name)
                    sums[each.name] = sums[each.name].merge(part) if each.name in sums else part
        for sums, group in zip(found, groups, strict=True):
            if sums:
                energy = block.weights(group.linears).square().sum(0)
                name = f"{block.prefix}{', '.join(group.linears)}"
                yield _place(name, block.index, "input", sums, energy)

    def _sums(self, tasks: list[tuple[Tensor, Tensor]], name: str) -> Sums:
        """Added up in the order of the samples, whatever the number of threads."""
        try:
            found = self.workers.map(lambda task: observe_profile(*task), tasks)
        except NumericalError as error:
            raise NumericalError(f"{name}: {error}") from None
        total = found[0]
        for each in found[1:]:
            total = total.merge(each)
        return total


def _masks(seen: list[Tensor], first: list[Tensor]) -> list[Tensor]:
    """Which tokens are kept apart. Of those that were sent to an expert nobody knows; none is."""
    if [len(x) for x in seen] == [len(mask) for mask in first]:
        return first
    return [torch.zeros(len(x), dtype=torch.bool) for x in seen]


def _place(name: str, block: int, kind: str, sums: dict[str, Sums], energy: Tensor | None) -> Place:
    names = list(sums)
    return Place(
        name=name,
        block=block,
        kind=kind,
        portraits={key: portray(each, energy) for key, each in sums.items()},
        likeness={key: compare(sums[names[0]], sums[key]) for key in names[1:]},
    )


FEATURE_PLACES = 0.25  # of the inputs as wide as the residual stream: LLM.int8(), section 3.2


def outlier_features(places: Sequence[Place], name: str) -> tuple[int, ...]:
    """Channels that are above 6 at 6 % of the tokens in a quarter of the inputs or more.

    Only inputs as wide as the residual stream count: in them a channel means the same throughout.
    """
    width = next(p.portraits[name].channels for p in places if p.kind == "residual")
    wide = [
        p.portraits[name] for p in places
        if p.kind == "input" and name in p.portraits and p.portraits[name].channels == width
    ]  # fmt: skip
    counts = [sum(c in portrait.loud_channels for portrait in wide) for c in range(width)]
    least = max(1, math.ceil(FEATURE_PLACES * len(wide)))
    return tuple(channel for channel, count in enumerate(counts) if count >= least)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
