"""Run every linear of a block once per sample: a result that can no longer change is read back.

The stages of a block (q,k,v | o | gate,up | down) each run the samples from the block's start, so
that later linears see the errors of earlier ones. What lies before the stage gives the same numbers
every time. It is kept in a file without a name: written pages belong to the system's file cache and
not to this process, and the system takes the file away however the process ends.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pennyweight.model.adapt import UnfusedExperts
from pennyweight.model.writer import disk_errors


@dataclass
class _Pass:
    """One sample on its way through the block, in one thread."""

    sample: Hashable
    calls: Counter[str] = field(default_factory=Counter)  # of each wrapped module so far
    keeping: bool = False  # the output of an enclosing module will be kept; its parts need not be
    loose: set[str] = field(default_factory=set)  # the homes of unsettled linears that have run


@dataclass(frozen=True)
class _Kept:
    """An output on disk, and the calls of wrapped modules that it stands for."""

    nest: Any  # the output, with a _Place for each tensor
    inner: Counter[str]


class Replay:
    """Outputs of the settled modules of one block, for every sample.

    A linear is settled once its stage is over, a module once all its linears are. Kept is an output
    before which, in its pass, nothing ran that can still change; hence it can be read back in all
    later passes, bit for bit. Modules without linears (norms, activations) are just run. So are
    modules whose output is not a tensor, None or a tuple or list of these, lies in memory that is
    not its own, or is mostly by-product; what is beneath them may still be kept. A module is taken
    to be a function: one that changes its arguments in place, or remembers calls, is not.
    """

    def __init__(self, block: nn.Module, stages: Sequence[Sequence[str]], folder: Path) -> None:
        """stages: the names of the block's linears, in the order they are settled in."""
        self._block, self._file = block, _Scratch(folder)
        self._stages = {name: i for i, names in enumerate(stages) for name in names}
        self._beneath: dict[str, set[str]] = {}  # module -> the linears in it, itself included
        for linear in self._stages:
            parts = linear.split(".")
            for end in range(1, len(parts) + 1):
                self._beneath.setdefault(".".join(parts[:end]), set()).add(linear)
        self._homes = {name: experts_around(block, name) for name in self._beneath}
        self._settled: set[str] = set()
        self._refused: set[str] = set()  # modules whose output cannot be kept
        self._kept: dict[tuple[Hashable, str, int], _Kept] = {}
        self._local = threading.local()

    def settle(self, linears: Sequence[str]) -> None:
        """From the next pass on, these linears give what they will always give."""
        self._settled.update(linears)

    def close(self) -> None:
        """Forget everything; the file is gone."""
        self._kept.clear()
        self._file.close()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was kept, so that any parameter may still change."""
        return not self._kept

    @contextmanager
    def passes(self, taps: Sequence[str] = ()) -> Iterator[Callable[[Hashable], None]]:
        """Read outputs back in the passes within; before each, call the result with its sample.

        taps: the linears whose inputs are looked at; experts of their stage and later ones are then
        not computed, and what settled modules give is kept. Without them, this is the last pass.
        Raises CheckpointError if the file cannot be written.
        """
        last = max((self._stages[name] for name in taps), default=None)
        wrapped = []
        try:
            for name in self._beneath:
                module = self._block.get_submodule(name)
                if (forward := self._forward(name, module, last)) is not None:
                    module.forward = forward
                    wrapped.append(module)
            yield self._begin
        finally:
            for module in wrapped:
                del module.forward

    def _begin(self, sample: Hashable) -> None:
        self._local.now = _Pass(sample)

    def _forward(self, name: str, module: nn.Module, last: int | None) -> Callable | None:
        """What the module does for a while instead of its own `forward`; None if just that.

        last: the stage behind which nothing is looked at; None if all is.
        """
        if self._settled >= self._beneath[name]:
            return self._settled_forward(name, module, keep=last is not None)
        if last is not None and isinstance(module, nn.Linear):
            return self._unsettled_forward(name, module, skip=self._stages[name] >= last)
        return None

    def _settled_forward(self, name: str, module: nn.Module, keep: bool) -> Callable:
        compute = module.forward
        harmless = {self._homes[name]} - {""}  # experts do not read each other

        def forward(*args: Any, **kwargs: Any) -> Any:
            now: _Pass = self._local.now
            key = (now.sample, name, now.calls[name])
            now.calls[name] += 1
            if (kept := self._kept.get(key)) is not None:
                now.calls.update(kept.inner)
                return _map(self._file.read, _Place, kept.nest)
            if not keep or now.keeping or name in self._refused:
                return compute(*args, **kwargs)
            before, now.keeping = now.calls.copy(), True
            try:
                out = compute(*args, **kwargs)
            finally:
                now.keeping = False
            if not _is_own(out, (*args, *kwargs.values())):
                self._refused.add(name)
            elif now.loose <= harmless:
                nest = _map(self._file.write, Tensor, out)
                self._kept[key] = _Kept(nest, now.calls - before)
            return out

        return forward

    def _unsettled_forward(self, name: str, linear: nn.Linear, skip: bool) -> Callable:
        compute, home = linear.forward, self._homes[name]

        def forward(x: Tensor) -> Tensor:
            self._local.now.loose.add(home)
            if skip and home:  # experts do not read each other, and what follows them is not run
                return x.new_zeros(*x.shape[:-1], linear.out_features)
            return compute(x)

        return forward


def experts_around(block: nn.Module, name: str) -> str:
    """The experts a module belongs to, which run side by side; "" if to none."""
    while name := name.rpartition(".")[0]:
        if isinstance(block.get_submodule(name), UnfusedExperts):
            return name
    return ""


def _map(change: Callable[[Any], Any], kind: type, nest: Any) -> Any:
    """The same nest of tuples and lists with everything of `kind` changed."""
    if isinstance(nest, tuple | list):
        return type(nest)(_map(change, kind, item) for item in nest)
    return change(nest) if isinstance(nest, kind) else nest


def _is_own(out: Any, arguments: tuple) -> bool:
    """Whether `out` can be kept: tensors in memory of their own, and little of it by-product."""
    outputs = list(out) if type(out) in (tuple, list) else [out]
    tensors = [item for item in outputs if isinstance(item, Tensor)]
    if not tensors or any(item is not None and not isinstance(item, Tensor) for item in outputs):
        return False
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    given = {x.untyped_storage().data_ptr() for x in arguments if isinstance(x, Tensor)}
    # Attention weights (tokens x tokens a head) are handed on and not read: too large to be kept.
    sizes = [tensor.nbytes for tensor in tensors]
    return (
        len(storages) == len(tensors)
        and storages.isdisjoint(given)
        and all(map(_is_dense, tensors))
        and sum(sizes[1:]) <= sizes[0]
    )


def _is_dense(tensor: Tensor) -> bool:
    """Whether the values fill the memory from its start, in whatever order of the axes."""
    axes = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    step = 1
    for stride, size in axes:
        if size != 1 and stride != step:
            return False
        step *= size
    return tensor.storage_offset() == 0 and tensor.numel() > 0


@dataclass(frozen=True)
class _Place:
    """Where the memory of a tensor lies in the file, and how it is read as one."""

    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class _Scratch:
    """A file without a name, made when it is first written to; threads may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._file: Any = None
        self._end = 0

    def write(self, tensor: Tensor) -> _Place:
        """Raises CheckpointError if the disk is full."""
        data = _memory(tensor)
        with disk_errors(self._folder):
            with self._lock:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(  # noqa: SIM115 - it outlives this call
                        dir=self._folder, suffix=".partial"
                    )
                start, self._end = self._end, self._end + len(data)
            written = 0
            while written < len(data):
                written += os.pwrite(self._file.fileno(), data[written:], start + written)
        return _Place(start, tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def read(self, place: _Place) -> Tensor:
        """In memory of its own, since whoever gets it may change it."""
        tensor = torch.empty_strided(place.shape, place.stride, dtype=place.dtype)
        data, done = _memory(tensor), 0
        while done < len(data):
            count = os.preadv(self._file.fileno(), [data[done:]], place.start + done)
            assert count, "the file holds what was written to it"
            done += count
        return tensor

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file, self._end = None, 0


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a dense tensor as they lie in memory."""
    flat = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    return flat.numpy().data
