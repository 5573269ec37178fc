"""What a method is that learns numbers of a block from the error of the block's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pennyweight.core import Format, Quantized, Registry

# What the output of the quantized block is compared with: what the block of the original model
# makes of its own inputs, or what it makes of the inputs that the quantized model has.
Target = Literal["original", "same_input"]
Values = Mapping[str, Tensor]  # the learned parameters by name, float32


@dataclass(frozen=True, kw_only=True)
class Start:
    """One linear as the rules left it."""

    weight: Float[Tensor, "out in"]  # before it was quantized, float32
    format: Format
    quantized: Quantized


@dataclass(frozen=True, kw_only=True)
class Link:
    """A place where a scale can move: channel i of what `readers` read is channel `channels[i]` of
    what `producer` writes, so that one can be divided and the other multiplied."""

    producer: str  # a norm or a linear of the block
    readers: tuple[str, ...]
    channels: Int64[Tensor, " in"]
    size: int  # channels of the producer
    offset: float = 0.0  # what is added to the producer's stored gain before it multiplies


@dataclass(frozen=True, kw_only=True)
class Given:
    """A block all of whose linears are quantized. Names are those within the block."""

    index: int
    depth: int  # blocks of the model
    seed: int
    name: str  # of the block, to draw its random numbers and to report
    linears: Mapping[str, Start]  # those that the method was asked to learn
    vectors: Mapping[str, Tensor]  # gains and biases, float32
    dtypes: Mapping[str, torch.dtype]  # of each vector as it is stored
    links: tuple[Link, ...] = ()


@runtime_checkable
class Learned(Protocol):
    """One linear whose weight depends on learned parameters."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The parameters that the weight depends on."""
        ...

    @property
    def task_rows(self) -> int:
        """Rows that are computed at a time: those that share a scale are not parted."""
        ...

    def rows(self, values: Values, start: int, stop: int) -> Float[Tensor, "rows in"]:
        """Rows start .. stop - 1 of the weight as it would be stored, differentiable: whatever
        rounds lets the gradient straight through."""
        ...

    def quantize(self, weight: Float[Tensor, "out in"], values: Values) -> Quantized:
        """What is stored. weight: the original one, with the learned scales folded into it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What a method learns in one block, and what follows from it."""

    start: dict[str, Tensor]  # the parameters, float32
    rates: Mapping[str, float]  # the learning rate of each
    decay: float = 0.0  # weight decay, of all
    bounds: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # least and largest
    # This many steps along the sign of the gradient, instead of epochs of AdamW.
    signed_steps: int | None = None
    weights: Mapping[str, Learned] = field(default_factory=dict)  # of linears
    vectors: Callable[[Values], dict[str, Tensor]] = lambda values: {}  # gains and biases
    scales: Callable[[Values], dict[int, Tensor]] = lambda values: {}  # of links, by their place


@runtime_checkable
class Trainer(Protocol):
    """Learns on the calibration samples of the run, block by block, after the rules of the block
    were carried out. The pipeline keeps what was learned only if it lowers the error of the block's
    output on every eighth of the samples."""

    source: ClassVar[str]  # where the method is described

    @property
    def links(self) -> bool:
        """Whether it uses `Given.links`."""
        ...

    @property
    def linears_alone(self) -> bool:
        """Whether nothing changes but the linears it learns: no gain, bias or scale elsewhere."""
        ...

    @property
    def epochs(self) -> int:
        """Passes over the samples, at most."""
        ...

    @property
    def batch(self) -> int:
        """Samples per step."""
        ...

    def visits(self, samples: int) -> int:
        """How often a sample is put through a block and back, at most, for so many samples."""
        ...

    @property
    def held_out(self) -> bool:
        """Whether the samples that judge are kept out of learning."""
        ...

    @property
    def target(self) -> Target: ...

    @property
    def loss(self) -> str:
        """A name in `loss.LOSSES`."""
        ...

    def check_format(self, format: Format) -> None:
        """Raises FormatError if weights of this format cannot be learned."""
        ...

    def __call__(self, given: Given) -> Learning:
        """Raises UnsupportedError if the linears were quantized in a way it cannot start from."""
        ...


TRAINERS: Registry[type[Trainer]] = Registry("trainer")
trainer = TRAINERS.register
