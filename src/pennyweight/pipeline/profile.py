"""The verb `profile`: what a model's activations look like, on one calibration set or on several.

One walk over the blocks: of the model one block is in memory at a time, and of each set its hidden
states. Processes of an engine walk a few samples each; what they saw adds up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pennyweight.core import DataError, Progress
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.engine import Engine, Local, threads_of
from pennyweight.model.resolve import resolve_model
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.text import Calibration
from pennyweight.observe.portrait import Likeness, Portrait, compare, portray
from pennyweight.pipeline.job import draw_for, tokenizer_for
from pennyweight.pipeline.recipe import Calibrate, check_calibration
from pennyweight.pipeline.survey import survey
from pennyweight.pipeline.walk import Rows, Seen, Walk, added_up


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


def profile(
    model: str,
    sets: Sequence[str],
    sampling: Sampling | None = None,
    *,
    engine: Engine | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Look at every input of a linear and at the residual stream, on each set by itself.

    `threads` and the engine, which shares out the samples, change the time and nothing else.
    Raises DataError for a set that is named twice or cannot be used, NumericalError for NaN or Inf.
    """
    sampling, engine = sampling or Sampling(), engine or Local()
    if not sets or len(set(sets)) < len(sets):
        raise DataError(f"profile: sets: expected one or more different ones, found {list(sets)}")
    path, trusted = resolve_model(model), sampling.trust_remote_code
    check_calibration(sampling.of(sets[0]), sampling.seed, "profile")
    skeleton = Skeleton.build(Checkpoint.open(path), trusted)
    drawn = {
        name: draw_for(path, skeleton, sampling.of(name), sampling.seed, trusted) for name in sets
    }
    tokenizer: Any = tokenizer_for(path, sets, trusted)
    bos = tokenizer.bos_token_id if tokenizer else None
    walk = Walk(
        path=path.resolve(), sets={name: _rows(made, bos) for name, made in drawn.items()},
        trust_remote_code=trusted, threads=threads_of(engine, threads), survey=survey(skeleton),
        progress=progress,
    )  # fmt: skip
    places = tuple(_place(seen) for seen in _seen(walk, engine) if seen.sums)
    return Profile(
        model=model,
        calibration={name: rows.description for name, rows in drawn.items()},
        places=places,
        outlier_features={name: outlier_features(places, name) for name in sets},
    )


def _rows(calibration: Calibration, bos: int | None) -> Rows:
    first = calibration.ids == (-1 if bos is None else bos)
    first[:, 0] = True
    return Rows(ids=calibration.ids, first=first)


def _seen(walk: Walk, engine: Engine) -> Iterable[Seen]:
    """A process by itself walks all samples at once: it loads each block once."""
    if engine.is_local:
        return walk.along(walk.shards)
    return added_up(engine.map(walk, [(number,) for number in walk.shards]), walk.sets)


def _place(seen: Seen) -> Place:
    reference, *others = seen.sums
    return Place(
        name=seen.name,
        block=seen.block,
        kind=seen.kind,
        portraits={key: portray(each, seen.energy) for key, each in seen.sums.items()},
        likeness={key: compare(seen.sums[reference], seen.sums[key]) for key in others},
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
