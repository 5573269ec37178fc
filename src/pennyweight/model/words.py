"""A checkpoint whose linears are packed in int32 words with scales by group, read as if its weights
were dense.

    weight[o, i] = scale[group(i), o] * (code[o, i] - zero_point[group(i), o])

GPTQ and AWQ checkpoints hold the same four parts under the same names and differ in how the words
are filled; a WordLayout says how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import CheckpointError
from pennyweight.model.checkpoint import Checkpoint, TensorInfo

WORD_BITS = 32
PARTS = ("qweight", "qzeros", "scales", "g_idx")
SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, kw_only=True)
class Words:
    """What the shapes of its parts say of a linear."""

    bits: int
    shape: tuple[int, int]  # out, in
    groups: int  # along in

    @property
    def group_size(self) -> int:
        return self.shape[1] // self.groups


@runtime_checkable
class WordLayout(Protocol):
    """How the words are filled."""

    @property
    def name(self) -> str:
        """As checkpoints call it."""
        ...

    def measure(self, weight: tuple[int, ...], zeros: tuple[int, ...], out: int) -> Words | None:
        """From the shapes of qweight and qzeros; None if this layout has no such shapes."""
        ...

    def decode(self, parts: Mapping[str, Tensor], words: Words) -> Float[Tensor, "out in"]:
        """The weight in float32."""
        ...


@dataclass(frozen=True)
class WordCheckpoint(Checkpoint):
    """`tensors` holds a dense float32 `X.weight` for every packed linear X; `read` decodes it."""

    layout: WordLayout | None = None
    stored: dict[str, TensorInfo] = field(default_factory=dict)  # what is in the files
    linears: dict[str, Words] = field(default_factory=dict)

    @classmethod
    def view(cls, files: Checkpoint, layout: WordLayout) -> WordCheckpoint:
        """Raises CheckpointError for a part that is missing or of the wrong shape or dtype."""
        names = [k.removesuffix(".qweight") for k in files.tensors if k.endswith(".qweight")]
        if not names:
            raise CheckpointError(
                f"{files.path}: config.json says {layout.name}, but there is no tensor X.qweight"
            )
        linears = {name: _measured(name, files, layout) for name in names}
        owned = {f"{name}.{part}" for name in names for part in PARTS}
        tensors = {key: info for key, info in files.tensors.items() if key not in owned}
        for name, words in linears.items():
            tensors[f"{name}.weight"] = replace(
                files.tensors[f"{name}.qweight"], name=f"{name}.weight", shape=words.shape,
                dtype=torch.float32, packed=True,
            )  # fmt: skip
        config = {k: v for k, v in files.config.items() if k != "quantization_config"}
        return cls(files.path, config, tensors, layout, files.tensors, linears)

    def read(self, name: str) -> Tensor:
        linear = name.removesuffix(".weight")
        if linear not in self.linears or linear == name:
            return super().read(name)
        assert self.layout is not None, "`view` sets it"
        files, words = Checkpoint(self.path, self.config, self.stored), self.linears[linear]
        keys = {part: f"{linear}.{part}" for part in PARTS if f"{linear}.{part}" in self.stored}
        parts = {part: files.read(key) for part, key in keys.items()}
        parts["g_idx"] = self._groups(linear, parts.get("g_idx"))
        return self.layout.decode(parts, words)

    def ordered(self, linear: str) -> bool:
        """Whether its groups are not runs of consecutive inputs: solved in another order."""
        if f"{linear}.g_idx" not in self.stored:
            return False
        given = Checkpoint(self.path, self.config, self.stored).read(f"{linear}.g_idx")
        return not torch.equal(given.long(), self._groups(linear, None))

    def _groups(self, linear: str, given: Tensor | None) -> Tensor:
        """The group of each input, int64 [in]."""
        words = self.linears[linear]
        if given is None:
            return torch.arange(words.shape[1]) // words.group_size
        if bool((given < 0).any()) or bool((given >= words.groups).any()):
            raise CheckpointError(
                f"{self.path}: {linear}.g_idx: goes from {int(given.min())} to {int(given.max())}; "
                f"there are scales for groups 0 to {words.groups - 1}"
            )
        return given.long()


def _measured(name: str, files: Checkpoint, layout: WordLayout) -> Words:
    for part in PARTS[:3]:
        if f"{name}.{part}" not in files.tensors:
            raise CheckpointError(f"{files.path}: {name}.{part} is missing, which {layout.name} "
                                  "needs")  # fmt: skip
    weight, zeros, scales = (files.tensors[f"{name}.{part}"] for part in PARTS[:3])
    for info, allowed in ((weight, (torch.int32,)), (zeros, (torch.int32,)),
                          (scales, SCALE_DTYPES)):  # fmt: skip
        if info.dtype not in allowed or len(info.shape) != 2 or min(info.shape) < 1:
            raise CheckpointError(
                f"{info.file}: {info.name}: found {info.dtype} {list(info.shape)}; {layout.name} "
                f"expects a matrix of {' or '.join(map(str, allowed))}"
            )
    groups, out = scales.shape
    words = layout.measure(weight.shape, zeros.shape, out)
    if words is None or words.groups != groups or words.shape[1] % groups:
        raise CheckpointError(
            f"{files.path}: {name}: qweight {list(weight.shape)}, qzeros {list(zeros.shape)} and "
            f"scales {list(scales.shape)} do not belong to one {layout.name} linear"
        )
    given = files.tensors.get(f"{name}.g_idx")
    if given is not None and (given.dtype is not torch.int32 or given.shape != (words.shape[1],)):
        raise CheckpointError(
            f"{given.file}: {given.name}: found {given.dtype} {list(given.shape)}; expected "
            f"torch.int32 [{words.shape[1]}]"
        )
    return words
