"""What an export target is: how one quantized linear is stored, and what config.json says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pennyweight.core import Quantized, Registry, Scheme


@dataclass(frozen=True)
class Part:
    """One tensor to be stored: what it will be, and how to make it when its turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One quantized linear, its numbers still on disk."""

    name: str  # of the module, as in the checkpoint
    module: str | None = None  # as transformers calls it, where the checkpoint has another name
    scheme: Scheme
    shape: tuple[int, int]  # out, in
    dtype: torch.dtype  # of the source weight
    transposed: bool = False  # whether the source stores it [in, out]
    part_of: str | None = None  # the tensor of all experts that the source keeps it in
    is_head: bool = False  # the model's head, of which engines have a class of its own
    stored: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]  # its parts in the work directory
    read: Callable[[str], Tensor]  # one of these parts
    load: Callable[[], Quantized]

    @property
    def names(self) -> tuple[str, ...]:
        """All that an engine may look it up by."""
        return (self.name,) if self.module in (None, self.name) else (self.name, self.module)

    @property
    def corrected(self) -> bool:
        """Whether it carries more than codes, scales and zero points."""
        return any(part.startswith(("sparse.", "low_rank.")) for part in self.stored)


@runtime_checkable
class Target(Protocol):
    """A layout that a result can be written in."""

    about: str  # one line for `list`
    serves: str  # what loads it
    exact: bool  # whether the stored weights are the computed ones, bit for bit

    def parts(self, linear: Linear) -> dict[str, Part]:
        """Suffix of the module's name -> Part. Raises FormatError for what it cannot hold."""
        ...

    def config(self, linears: Sequence[Linear], ignore: list[str]) -> dict[str, Any] | None:
        """The `quantization_config` of config.json; None for none."""
        ...


TARGETS: Registry[Target] = Registry("target")
