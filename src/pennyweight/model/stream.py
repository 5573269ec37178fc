"""Walk a checkpoint block by block: load one, let the caller work on it, move the samples past
it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pennyweight.core import NumericalError
from pennyweight.core.finite import is_finite
from pennyweight.model.capture import Sample, set_parameters
from pennyweight.model.replay import Replay, experts_around
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.topology import Group, Topology
from pennyweight.model.workers import Workers


class Block:
    """One decoder block with its weights in memory."""

    def __init__(
        self,
        skeleton: Skeleton,
        index: int,
        topology: Topology,
        dtype: torch.dtype,
        folder: Path | None = None,
    ) -> None:
        """folder: where outputs of one pass are kept for the next; without it they are computed
        again."""
        self.index, self.topology, self.dtype = index, topology, dtype
        self.prefix = skeleton.block_prefix(index)
        self._skeleton, self.module = skeleton, skeleton.blocks[index]
        self.sources = skeleton.block_sources(index)
        self.changes: dict[str, Tensor] = {}  # what was put in place of parameters, float32
        stages = [[n for group in stage for n in group.linears] for stage in topology.stages]
        self._replay = Replay(self.module, stages, folder) if folder else None

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
            if self._replay is not None:
                self._replay.close()
            for name, module in children.items():
                if isinstance(module, nn.Linear):
                    self.replace(name, module)  # undo what was put in its place
            set_parameters(self.module, empty)

    def _read(self, name: str) -> Tensor:
        tensor = self._skeleton.read(self.sources[name])
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def weight(self, name: str) -> Tensor:
        """Weight [out, in] of a linear as the checkpoint stores it, exact, in float32."""
        return self.parameter(f"{name}.weight")

    def weights(self, names: Sequence[str]) -> Tensor:
        """The weights of linears that share an input, one below the other."""
        if len(names) == 1:
            return self.weight(names[0])
        shapes = [self.module.get_parameter(f"{name}.weight").shape for name in names]
        whole = torch.empty(sum(rows for rows, _ in shapes), shapes[0][1])
        for name, part in zip(names, whole.split([rows for rows, _ in shapes]), strict=True):
            part.copy_(self.weight(name))
        return whole

    def parameter(self, name: str) -> Tensor:
        """A parameter in float32: what was put there, else as the checkpoint stores it."""
        if name in self.changes:
            return self.changes[name]
        return self._skeleton.read(self.sources[name]).float()

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype in which the checkpoint stores a parameter."""
        return self._skeleton.checkpoint.tensors[self.sources[name].key].dtype

    def put_stored(self, values: dict[str, Tensor]) -> None:
        """As `put`, for tensors by their names and orientation in the checkpoint."""
        self.put({
            name: (values[source.key].T if source.transposed else values[source.key]).float()
            for name, source in self.sources.items()
            if source.key in values
        })  # fmt: skip

    def put(self, values: dict[str, Tensor]) -> None:
        """Compute with these parameters, float32, from here on; before any stage is settled."""
        assert self._replay is None or self._replay.is_empty, "kept outputs would be out of date"
        self.changes |= values
        set_parameters(self.module, {name: v.to(self.dtype) for name, v in values.items()})

    def reopen(self) -> None:
        """Parameters may change again after all: what was kept of outputs is forgotten."""
        if self._replay is not None:
            self._replay.close()

    def replace(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.module.get_submodule(parent), child, module)

    def settle(self, groups: Sequence[Group]) -> None:
        """The linears of a stage that is over will not change any more."""
        if self._replay is not None:
            self._replay.settle([name for group in groups for name in group.linears])

    def inputs(
        self, groups: Sequence[Group], samples: list[Sample], workers: Workers
    ) -> list[list[Tensor]]:
        """For each group, the input [tokens, in] of its linears for each sample, where there was
        one."""
        taps = {group.linears[0]: group for group in groups}
        with self._passes(list(taps)) as run, tapped(self.module, list(taps), run) as tap:
            found = workers.map(tap, samples)
        return [[seen[name] for seen in found if name in seen] for name in taps]

    def advance(self, samples: list[Sample], workers: Workers) -> None:
        """Replace each sample's hidden state by the block's output for it."""

        def step(sample: Sample) -> None:
            hidden = run(sample)
            if not is_finite(hidden):
                raise NumericalError("the block's output holds NaN or Inf on calibration data")
            sample.hidden = hidden  # at once: all states before and after would be twice as much

        with self._passes() as run:
            workers.map(step, samples)

    @contextmanager
    def _passes(self, taps: Sequence[str] = ()) -> Iterator[Callable[[Sample], Tensor]]:
        """A function that runs a sample through the block."""
        with self._named():
            if self._replay is None:
                yield lambda sample: sample.run(self.index, self.module)
                return
            with self._replay.passes(taps) as begin:

                def run(sample: Sample) -> Tensor:
                    begin(id(sample))
                    return sample.run(self.index, self.module)

                yield run

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
def tapped(
    block: nn.Module, names: list[str], run: Callable[[Any], Tensor]
) -> Iterator[Callable[[Any], dict[str, Tensor]]]:
    """A function that runs a sample up to the last tapped linear and returns their inputs."""
    local = threading.local()
    stop_early = not any(part.isdigit() for name in names for part in name.split("."))  # no experts

    def hook(name: str):
        def record(module, args):
            local.seen[name] = args[0].flatten(0, -2)
            if stop_early and len(local.seen) == len(names):
                raise _Enough

        return record

    def stop(*_):
        raise _Enough

    handles = [block.get_submodule(n).register_forward_pre_hook(hook(n)) for n in names]
    homes = {experts_around(block, name) for name in names}
    if len(homes) == 1 and (home := homes.pop()):
        handles.append(block.get_submodule(home).register_forward_hook(stop))

    def tap(sample: Any) -> dict[str, Tensor]:
        local.seen = {}
        with suppress(_Enough):
            run(sample)
        return local.seen

    try:
        yield tap
    finally:
        for handle in handles:
            handle.remove()
