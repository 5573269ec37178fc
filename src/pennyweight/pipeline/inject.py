"""A test instrument: outliers put into a model that computes what it did before.

A few channels of every norm are turned up, and down again in the columns of the weights that read
them. Activations then look like those of models that are hard to quantize (Dettmers et al. 2022,
https://arxiv.org/abs/2208.07339; Xiao et al. 2022, https://arxiv.org/abs/2211.10438), while the
logits stay: whatever a method loses afterwards, it loses to outliers alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pennyweight.core import CheckpointError, RecipeError, UnsupportedError
from pennyweight.export import TARGETS
from pennyweight.export.base import Part
from pennyweight.export.checkpoint import write_checkpoint
from pennyweight.model.calibration.base import seeded
from pennyweight.model.capture import Sample, capture, max_tokens
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.feeds import Feed, find_feed
from pennyweight.model.load import vocabulary
from pennyweight.model.resolve import resolve_model
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.stream import Block
from pennyweight.model.topology import Group
from pennyweight.model.workers import Workers, start_workers
from pennyweight.model.writer import disk_errors, replace_file
from pennyweight.pipeline.rescale import MOVED, rewritten
from pennyweight.pipeline.survey import survey

TOKENS = 64  # of the one random sample on which feeds are found and every block is proven


@dataclass(frozen=True, kw_only=True)
class Injection:
    """What was done to the model."""

    path: Path
    alpha: float
    channels: tuple[int, ...]  # of the residual stream; in every norm the same, as in real models
    norms: tuple[str, ...]  # that were turned up
    told: tuple[str, ...]  # norms that were left alone, and why


def inject_outliers(
    model: str | Path, output: str | Path, *, alpha: float, channels: int = 4, seed: int = 0
) -> Injection:
    """Write a copy of `model` whose norms are `alpha` times louder in `channels` channels.

    A power of two changes no bit of the logits; another alpha rounds as the checkpoint's dtype
    does. Tensors that change are held in memory. Raises RecipeError for numbers that make no sense,
    UnsupportedError if no norm could be turned up, CheckpointError if `output` exists.
    """
    path, output = resolve_model(model), Path(output)
    if not 0 < alpha < 2.0**15:
        raise RecipeError(f"alpha: expected a number above 0 and below 2^15, found {alpha}")
    if os.path.lexists(output):
        raise CheckpointError(f"{output}: exists; choose another output directory, or remove it")
    checkpoint = Checkpoint.open(path)
    skeleton = Skeleton.build(checkpoint)
    hidden = skeleton.model.config.get_text_config().hidden_size
    if not 1 <= channels <= hidden:
        raise RecipeError(f"channels: expected 1 to {hidden}, found {channels}")
    order = torch.randperm(hidden, generator=seeded(seed, "outlier channels"))
    chosen = tuple(sorted(order[:channels].tolist()))
    with start_workers() as workers, torch.inference_mode():
        work = _Injecting(skeleton, workers, alpha, chosen)
        norms, told, changed = work()
    if not norms:
        raise UnsupportedError(f"{path}: no norm could be turned up: {'; '.join(told)}")
    _write(checkpoint, changed, output)
    return Injection(
        path=output, alpha=alpha, channels=chosen, norms=tuple(norms), told=tuple(told)
    )


def _write(checkpoint: Checkpoint, changed: dict[str, Tensor], output: Path) -> None:
    """Everything under another name first, so that `output` is whole when it appears."""
    parts = {name: Part(t.dtype, tuple(t.shape), lambda t=t: t) for name, t in changed.items()}
    staged = output.with_name(f".{output.name}.partial")
    with disk_errors(staged):
        shutil.rmtree(staged, ignore_errors=True)  # of an earlier run that was stopped
        staged.mkdir(parents=True)
        write_checkpoint(checkpoint, [], {}, parts, staged, TARGETS["dense"])
        replace_file(staged, output)


@dataclass(frozen=True)
class _Injecting:
    skeleton: Skeleton
    workers: Workers
    alpha: float
    channels: tuple[int, ...]

    def __call__(self) -> tuple[list[str], list[str], dict[str, Tensor]]:
        """Norms that were turned up, what there is to say of others, and tensors by their name."""
        topologies = survey(self.skeleton).topologies
        norms, told, changed = [], [], {}
        samples = capture(self.skeleton, self._row(), torch.float32)
        for index, topology in enumerate(topologies):
            block = Block(self.skeleton, index, topology, torch.float32)
            with block.loaded():
                for group in topology.groups:
                    if why := self._turn_up(block, group, samples[0]):
                        told.append(why)
                    elif self._is_fed(block, group):
                        norms.append(f"{block.prefix}{group.producer}")
                told += [
                    f"{name}: left alone, since what reads it is not linears alone"
                    for name in self._norms(block)
                    if name not in norms and not any(line.startswith(f"{name}:") for line in told)
                ]
                changed |= dict(_stored(block))
                block.advance(samples, self.workers)
        return norms, told, changed

    def _row(self) -> Tensor:
        size = (1, min(TOKENS, max_tokens(self.skeleton) or TOKENS))
        generator = torch.Generator().manual_seed(0)
        return torch.randint(vocabulary(self.skeleton.model), size, generator=generator)

    def _norms(self, block: Block) -> Iterator[str]:
        """Everything with a gain for each channel of the residual stream."""
        width = self.skeleton.model.config.get_text_config().hidden_size
        for name, module in block.module.named_modules():
            weight = dict(module.named_parameters(recurse=False)).get("weight")
            if weight is not None and weight.shape == (width,):
                yield f"{block.prefix}{name}"

    def _is_fed(self, block: Block, group: Group) -> bool:
        producer = group.producer
        return producer is not None and not isinstance(
            block.module.get_submodule(producer), nn.Linear
        )

    def _turn_up(self, block: Block, group: Group, sample: Sample) -> str | None:
        """Rewrite one norm and its readers; why not, if it cannot be done."""
        if not self._is_fed(block, group):
            return None
        assert group.producer is not None
        where = f"{block.prefix}{group.producer}"
        observe = lambda: block.inputs([group], [sample], self.workers)[0][0]
        feed = find_feed(block.module, group.producer, observe)
        if feed is None:
            return f"{where}: left alone, since {group.linears[0]} does not scale with it"
        expected = sample.run(block.index, block.module)
        put = rewritten(block, group, feed, self._scale(feed))
        put = {name: value.to(block.stored_dtype(name)).float() for name, value in put.items()}
        restore, old = {name: block.parameter(name) for name in put}, dict(block.changes)
        block.put(put)
        moved = (sample.run(block.index, block.module) - expected).norm() / expected.norm()
        coarsest = max((MOVED[block.stored_dtype(name)] for name in put), default=0.0)
        if moved <= coarsest:
            return None
        block.put(restore)
        block.changes = old
        return f"{where}: left alone, since it feeds more than {', '.join(group.linears)}"

    def _scale(self, feed: Feed) -> Tensor:
        """What `rewritten` divides the norm by and multiplies the columns with."""
        loud = torch.isin(feed.channels, torch.tensor(self.channels))
        return torch.ones(len(loud)).where(~loud, 1 / self.alpha)


def _stored(block: Block) -> Iterator[tuple[str, Tensor]]:
    """The changed parameters as the checkpoint keeps them."""
    for name, value in block.changes.items():
        source = block.sources[name]
        stored = value.to(block.stored_dtype(name))
        yield source.key, stored.T.contiguous() if source.transposed else stored
