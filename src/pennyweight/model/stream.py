"""Walk a checkpoint block by block: load one, let the caller work on it, move the samples past
it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from pennyweight.core import NumericalError
from pennyweight.model.capture import Sample, set_parameters
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.topology import Group, Topology
from pennyweight.model.workers import Workers


class Block:
    """One decoder block with its weights in memory."""

    def __init__(
        self, skeleton: Skeleton, index: int, topology: Topology, dtype: torch.dtype
    ) -> None:
        self.index, self.topology, self.dtype = index, topology, dtype
        self.prefix = skeleton.block_prefix(index)
        self._skeleton, self.module = skeleton, skeleton.blocks[index]
        self.sources = skeleton.block_sources(index)

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Read the weights from disk for the length of the `with` block, in the compute dtype."""
        children = dict(self.module.named_modules())
        empty = {}
        for name in self.sources:
            value = self._read(name)
            set_parameters(self.module, {name: value})
            empty[name] = value.to("meta")  # and no reference to the value: it can be replaced
        try:
            yield
        finally:
            for name, module in children.items():
                if isinstance(module, nn.Linear):
                    self.replace(name, module)  # undo what was put in its place
            set_parameters(self.module, empty)

    def _read(self, name: str) -> Tensor:
        tensor = self._skeleton.read(self.sources[name])
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def weight(self, name: str) -> Tensor:
        """Weight [out, in] of a linear as the checkpoint stores it, exact, in float32."""
        return self._skeleton.read(self.sources[f"{name}.weight"]).float()

    def replace(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.module.get_submodule(parent), child, module)

    def inputs(
        self, groups: Sequence[Group], samples: list[Sample], workers: Workers
    ) -> list[list[Tensor]]:
        """For each group, the input [tokens, in] of its linears for each sample, where there was
        one."""
        taps = {group.linears[0]: group for group in groups}
        with self._named(), _tapped(self.module, list(taps)) as tap:
            found = workers.map(lambda sample: tap(sample, self.index), samples)
        return [[seen[name] for seen in found if name in seen] for name in taps]

    def advance(self, samples: list[Sample], workers: Workers) -> None:
        """Replace each sample's hidden state by the block's output for it."""

        def step(sample: Sample) -> Tensor:
            return sample.run(self.index, self.module)

        with self._named():
            advanced = workers.map(step, samples)
        for sample, hidden in zip(samples, advanced, strict=True):
            if not bool(hidden.isfinite().all()):
                raise NumericalError(
                    f"{self.prefix[:-1]}: the block's output holds NaN or Inf on calibration data"
                )
            sample.hidden = hidden

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say in which block a number inside the forward pass was not finite."""
        try:
            yield
        except NumericalError as error:
            raise NumericalError(f"{self.prefix[:-1]}: {error}") from None


class _Enough(Exception):
    """Every tapped linear was reached; the rest of the block need not run."""


@contextmanager
def _tapped(
    block: nn.Module, names: list[str]
) -> Iterator[Callable[[Sample, int], dict[str, Tensor]]]:
    """A function that runs a sample up to the last tapped linear and returns their inputs."""
    local = threading.local()
    stop_early = not any(part.isdigit() for name in names for part in name.split("."))  # no experts

    def hook(name: str):
        def record(module, args):
            local.seen[name] = args[0].flatten(0, -2)
            if stop_early and len(local.seen) == len(names):
                raise _Enough

        return record

    handles = [block.get_submodule(n).register_forward_pre_hook(hook(n)) for n in names]

    def tap(sample: Sample, index: int) -> dict[str, Tensor]:
        local.seen = {}
        with suppress(_Enough):
            sample.run(index, block)
        return local.seen

    try:
        yield tap
    finally:
        for handle in handles:
            handle.remove()
