"""Units that are no linear of a block: what else of a model can be in low precision.

    qk, pv       the two products of attention of a block, which have operands and no weights
    kv_cache     keys and values of a block as a cache holds them
    embeddings   the matrix of the input embedding, also where it is the head as well
    lm_head      the head, where it has a matrix of its own
    router       what sends tokens to experts

The first three take the formats of `formats.operands`, or a scheme that rounds inputs: then the
operands are rounded as the scheme rounds the input of a linear. The products as units are those of
Scaling Laws for Mixed Quantization, https://arxiv.org/abs/2410.06722, v1, section 3. The others
take weight-only schemes. Embeddings and routers are rounded to nearest, whatever the quantizer is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import (
    ActivationFormat,
    FormatError,
    UnknownNameError,
    UnsupportedError,
)
from pennyweight.formats.operands import parse_operand
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.formats.storage import stored_bytes
from pennyweight.model.attention import UNITS, attending_blocks, attention_widths
from pennyweight.model.capture import capture_shapes
from pennyweight.pipeline.survey import Survey

OPERANDS = UNITS  # kinds that take formats of operands


def is_scheme(name: str) -> bool:
    """Names of schemes begin with a capital letter, those of operands do not."""
    return name[:1].isupper()


@dataclass(frozen=True, kw_only=True)
class Operands:
    """The numbers of one unit of a block's attention. Nothing of them is stored with the model."""

    name: str  # model.layers.0.qk
    kind: str
    block: int
    widths: Mapping[str, int]  # role -> of its rows

    def format(self, name: str) -> ActivationFormat:
        """Of an operand format or scheme. Raises UnknownNameError, UnsupportedError, and
        FormatError for a group that does not divide a row."""
        found = operand_format(name, self.kind)
        for role, width in self.widths.items():
            if width % (size := found.format.group_size or width):
                raise FormatError(
                    f"{name}: the {role} have head_dim {width}, which is not a multiple of "
                    f"group_size {size}"
                )
        return found

    def fault(self, name: str) -> str | None:
        try:
            self.format(name)
        except FormatError as error:
            return str(error)
        return None

    def stored_bits(self, name: str, dtype: torch.dtype) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A weight outside the linears of the blocks, rounded to nearest."""

    name: str  # of the tensor in the checkpoint
    kind: str
    modules: tuple[str, ...]  # that have it as their weight
    shape: tuple[int, int]

    def fault(self, name: str) -> str | None:
        scheme = parse_scheme(name)
        if scheme.activation is not None:
            return f"{name} rounds inputs, and {self.kind} can only be in a weight-only scheme"
        try:
            scheme.weight.groups(*self.shape)
        except FormatError as error:
            return f"{name}: {error}"
        return None

    def stored_bits(self, name: str, dtype: torch.dtype) -> int:
        """dtype: of the scales."""
        return 8 * stored_bytes(parse_scheme(name, dtype).weight, self.shape)

    def rounded(self, survey: Survey, name: str) -> Float[Tensor, "rows cols"]:
        skeleton = survey.skeleton
        weight = skeleton.read(skeleton.sources[f"{self.modules[0]}.weight"]).float()
        return round_to_nearest(weight, parse_scheme(name, skeleton.dtype).weight).dequantize()


@dataclass(frozen=True, kw_only=True)
class Head:
    """The head, which the pipeline quantizes as it does a linear of a block."""

    name: str
    kind: str = "lm_head"


Beside = Operands | Matrix | Head


def operand_format(name: str, kind: str) -> ActivationFormat:
    """How the operands of a unit are rounded by an operand format, or by a scheme of linears.

    Raises UnknownNameError, and UnsupportedError for what leaves inputs alone or needs a scale that
    is fixed beforehand.
    """
    if is_scheme(name):
        found = parse_scheme(name).activation
        if found is None:
            raise UnsupportedError(
                f"{name}: leaves inputs at 16 bits, and {kind} has nothing else; name a format of "
                "operands such as int8, or a scheme that rounds inputs such as MXINT4"
            )
    else:  # only what is cached is stored, and so has its scales in 16 bits
        found = parse_operand(name, torch.float16 if kind == "kv_cache" else torch.float32)
    if not found.dynamic:
        raise UnsupportedError(
            f"{name}: has a scale that is fixed on calibration text, which units of a study have "
            "not; use a dynamic one such as int8 or fp8"
        )
    assert found.format.group_rows == 1, "a dynamic scale is of one token"
    return found


def check_also(also: Sequence[str]) -> None:
    """Raises UnknownNameError for a kind that there is not."""
    for kind in also:
        if kind not in FINDERS:
            raise UnknownNameError(f"unknown units {kind!r:.40}; known: {', '.join(FINDERS)}")


def beside_of(survey: Survey, also: Sequence[str]) -> tuple[Beside, ...]:
    """The units of these kinds, kind after kind, in the order of the blocks.

    Raises UnknownNameError for a kind that there is not, UnsupportedError for one that the model
    has no unit of.
    """
    check_also(also)
    kinds = [kind for kind in FINDERS if kind in also]
    return tuple(each for kind in kinds for each in FINDERS[kind](survey, kind))


def _operands(survey: Survey, kind: str) -> Iterator[Operands]:
    skeleton = survey.skeleton
    sample = capture_shapes(skeleton)
    for index in attending_blocks(skeleton.model.config):
        prefix = skeleton.block_prefix(index)
        widths = attention_widths(skeleton.blocks[index], sample, index)
        if not widths:
            raise UnsupportedError(
                f"{prefix}{kind}: {type(skeleton.model).__name__} does not look its attention up "
                "by name, so that the numbers in it cannot be rounded"
            )
        yield Operands(name=f"{prefix}{kind}", kind=kind, block=index, widths=widths[kind])


def _embeddings(survey: Survey, kind: str) -> Iterator[Matrix]:
    model, sources = survey.skeleton.model, survey.skeleton.sources
    embedding = model.get_input_embeddings()
    names = [name for name, module in model.named_modules() if module is embedding]
    key = sources[f"{names[0]}.weight"].key
    modules = [
        name.removesuffix(".weight") for name, source in sources.items() if source.key == key
    ]
    rows, cols = survey.skeleton.checkpoint.tensors[key].shape
    yield Matrix(name=key, kind=kind, modules=tuple(modules), shape=(rows, cols))


def _lm_head(survey: Survey, kind: str) -> Iterator[Head]:
    if survey.head is None:
        raise UnsupportedError(
            f"{kind}: {type(survey.skeleton.model).__name__} has no head with a matrix of its own "
            "(a tied one is the embedding: that is the unit embeddings)"
        )
    yield Head(name=survey.head.tensor)


def _routers(survey: Survey, kind: str) -> Iterator[Matrix]:
    skeleton, found = survey.skeleton, False
    modules = {source.key: name for name, source in skeleton.sources.items()}
    for name, why in survey.kept.items():
        shape = skeleton.checkpoint.tensors[name].shape
        if (
            why == "router or gate"
            and len(shape) == 2
            and not skeleton.sources[modules[name]].transposed
        ):
            found = True
            module = modules[name].removesuffix(".weight")
            yield Matrix(name=name, kind=kind, modules=(module,), shape=(shape[0], shape[1]))
    if not found:
        raise UnsupportedError(f"{kind}: {type(skeleton.model).__name__} has none")


FINDERS: dict[str, Callable[[Survey, str], Iterator[Beside]]] = {
    **dict.fromkeys(OPERANDS, _operands),
    "embeddings": _embeddings,
    "lm_head": _lm_head,
    "router": _routers,
}
ALSO = tuple(FINDERS)
