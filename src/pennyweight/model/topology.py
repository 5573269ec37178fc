"""Which linears of a block share an input, in what order, and which module feeds them.

Found by running the block on the meta device (shapes only, no weights) and comparing the storage
that each leaf reads with the storage that each leaf wrote. The storage and not the tensor, because
models reshape in between (OPT flattens before its second norm).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pennyweight.model.capture import Sample


@dataclass(frozen=True)
class Group:
    """Linears that read the same tensor, named within their block."""

    linears: tuple[str, ...]
    producer: str | None  # the leaf that wrote the tensor, such as a norm


@dataclass(frozen=True)
class Topology:
    """The stages of a block in the order they run.

    A stage holds groups that can be observed in the same pass: one group, or the same projection of
    every expert.
    """

    stages: tuple[tuple[Group, ...], ...]

    @property
    def groups(self) -> list[Group]:
        return [group for stage in self.stages for group in stage]

    @property
    def linears(self) -> list[str]:
        return [name for group in self.groups for name in group.linears]

    def fused(self) -> list[tuple[str, ...]]:
        """Linears that engines run as one matrix product: same input, same parent (q,k,v;
        gate,up)."""
        found = []
        for group in self.groups:
            families: dict[str, list[str]] = {}
            for name in group.linears:
                families.setdefault(name.rpartition(".")[0], []).append(name)
            found += [tuple(names) for names in families.values() if len(names) > 1]
        return found


def find_topology(block: nn.Module, sample: Sample, index: int) -> Topology:
    """Topology of block `index`; `sample` supplies the arguments it is called with."""
    shapes_only = copy.deepcopy(block).to("meta")  # a copy: .to would empty real buffers too
    with torch.no_grad(), _recording(shapes_only) as seen:
        meta = Sample(to_meta(sample.hidden), to_meta(sample.calls))
        meta.run(index, shapes_only)
    writers = {_storage(out): name for name, _, out, _ in seen}
    groups: dict[tuple, list[str]] = {}
    for name, source, _, is_linear in seen:
        if is_linear:
            groups.setdefault(
                (_storage(source), source.storage_offset(), source.numel()), []
            ).append(name)
    found = [Group(tuple(names), writers.get(key[0])) for key, names in groups.items()]
    return Topology(tuple(_stages(found)))


def _stages(groups: list[Group]) -> Iterator[tuple[Group, ...]]:
    """Experts differ only in their number; the same projection of all of them is one stage."""
    stages: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        pattern = tuple(re.sub(r"\.\d+\.", ".*.", name) for name in group.linears)
        stages.setdefault(pattern, []).append(group)
    yield from map(tuple, stages.values())


class _recording:
    """Collects (name, input, output, is linear) of every leaf, and keeps the tensors alive.

    Alive, because the address of a freed storage may be given to the next one.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __enter__(self) -> list[tuple[str, Tensor, Tensor, bool]]:
        seen: list[tuple[str, Tensor, Tensor, bool]] = []

        def hook(name: str, is_linear: bool):
            def record(module, args, out):
                if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                    seen.append((name, args[0], out, is_linear))

            return record

        self.handles = [
            module.register_forward_hook(hook(name, isinstance(module, nn.Linear)))
            for name, module in self.block.named_modules()
            if not any(True for _ in module.children())
        ]
        return seen

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # data_ptr is 0 on the meta device


def to_meta(value: Any) -> Any:
    """The same nest of tuples, lists and dicts with every tensor on the meta device."""
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, tuple | list):
        return type(value)(to_meta(item) for item in value)
    if isinstance(value, dict):
        return {key: to_meta(item) for key, item in value.items()}
    return value
