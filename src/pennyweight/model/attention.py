"""Attention with rounded numbers: keys and values as a cache would hold them, and the operands of
its two products.

transformers looks the attention of most models up in a table by a name in the config. Two names are
added to it, behind which stands what stood there before, with its arguments rounded. Nothing here
knows a family. That a model really computes through the table, in every layer, and unchanged
but for the rounding, is tried on a few tokens before anything is measured.

What is rounded and where is in `docs/evaluation.md`. The two products as units of their own are
those of Scaling Laws for Mixed Quantization (arXiv:2410.06722, v1).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from pennyweight.core import (
    ActivationFormat,
    Format,
    FormatError,
    NumericalError,
    UnsupportedError,
)
from pennyweight.formats.operands import parse_operand
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.storage import bits_per_weight
from pennyweight.model.capture import Sample
from pennyweight.model.linear import round_activation, static_input_scale
from pennyweight.model.topology import to_meta

PREFIX = "pennyweight_"
IMPLEMENTATIONS = ("eager", "sdpa")  # those behind which there is a name of ours
ATTRIBUTE = "pennyweight_attention"  # of every module of a model: which of them attend is unknown
PROBE_TOKENS = 16
WITHOUT_CACHE = ("linear_attention", "conv", "moe")  # layers of transformers without keys
PROBABILITIES = "probabilities"
UNITS = ("qk", "pv", "kv_cache")  # what is rounded apart from the rest
ROLES = {  # the numbers that a unit rounds
    "kv_cache": ("cached keys", "cached values"),
    "qk": ("queries", "keys"),
    "pv": (PROBABILITIES, "values"),
}
MANY_TOKENS = 1 << 12  # over which the scale of a whole tensor costs nothing


@dataclass(frozen=True, kw_only=True)
class AttentionFormats:
    """Names of formats (`formats.operands`); None leaves the numbers as they are."""

    kv_cache: str | None = None  # keys and values of every token, per key/value head
    qk: str | None = None  # queries and keys, where they are multiplied
    pv: str | None = None  # probabilities and values, where they are multiplied
    calibrate: tuple[str, ...] = ("stdlib",)  # the text on which static scales are found

    def parsed(self) -> dict[str, ActivationFormat | None]:
        """Raises UnknownNameError. Only what is cached is stored, so only its scales are short."""
        dtypes = {"kv_cache": torch.float16, "qk": torch.float32, "pv": torch.float32}
        names = {unit: getattr(self, unit) for unit in dtypes}
        return {
            unit: None if name is None else parse_operand(name, dtypes[unit])
            for unit, name in names.items()
        }

    @property
    def static(self) -> bool:
        """Whether scales must be calibrated."""
        return any(found is not None and not found.dynamic for found in self.parsed().values())


Change = Callable[[nn.Module, str, ActivationFormat, Tensor], Tensor]
"""(layer, role, format, numbers [batch, heads, tokens, width]) -> the numbers to compute with."""


@dataclass(eq=False)
class _Rounding:
    """What happens in the attention of one model, or of one of its blocks."""

    change: Change
    kv_cache: ActivationFormat | None = None
    qk: ActivationFormat | None = None
    pv: ActivationFormat | None = None


def round_attention(
    model: PreTrainedModel,
    formats: AttentionFormats,
    calibration: Int64[Tensor, "samples tokens"] | None = None,
) -> float | None:
    """From now on the model computes with these formats.

    Returns the bits per number in the cache, scales included; None where it is not rounded.
    `calibration` is needed where `formats.static`. Raises UnsupportedError for a model whose
    attention cannot be reached in every layer, FormatError for groups that do not divide the width
    of a head, NumericalError for NaN and Inf.
    """
    parsed, observer = formats.parsed(), _Observer()
    if not any(parsed.values()):
        return None
    rounding = _Rounding(observer, **parsed)
    with torch.no_grad():
        expected = _probe(model)
        _install(model, rounding)
        _check(model, observer, expected, _probe(model), exact=rounding.pv is None)
        bits = _cache_bits(rounding, observer.widths)
        if formats.static:
            assert calibration is not None, "static scales are found on calibration text"
            observer.largest.clear()
            for row in calibration.to(expected.device):
                model(input_ids=row[None], use_cache=False)
        rounding.change = _Rounder(
            {m: name for name, m in model.named_modules()}, observer.scales()
        )
        _probe(model)  # a group that does not divide is known now
    return bits


class BlockAttention:
    """The attention of a model with formats of their own for each block, to be changed at will."""

    def __init__(self, model: PreTrainedModel, blocks: nn.ModuleList) -> None:
        """Nothing is rounded yet. Raises UnsupportedError as `round_attention` does."""
        self._model, self._blocks = model, blocks
        self._plain = str(model.config._attn_implementation)
        self._checked: set[str] = set()
        self._change = _Rounder({module: name for name, module in model.named_modules()}, {})
        self._install(self._plain, "qk")

    def put(self, formats: Mapping[int, Mapping[str, ActivationFormat]]) -> None:
        """Round in these formats from here on. formats: block -> unit of `UNITS` -> format, each
        with scales that are found when it is used.

        Raises UnsupportedError if probabilities are out of reach; nothing is rounded then.
        """
        implementation = self._plain
        if any("pv" in each for each in formats.values()):
            implementation = "eager"  # only the eager functions hand out the probabilities
            self._install(implementation, "pv")
        _look_up(self._model, implementation)
        for index, block in enumerate(self._blocks):
            _attach(block, _Rounding(self._change, **formats.get(index, {})))

    def _install(self, implementation: str, unit: str) -> None:
        """Try once whether the model computes through our name; nothing is rounded afterwards."""
        if implementation in self._checked:
            return
        observer, before = _Observer(), str(self._model.config._attn_implementation)
        watched = {unit: parse_operand("int8")}  # whatever its format is, it changes nothing
        _attach(self._model, _Rounding(self._change))
        with torch.no_grad():
            expected = _probe(self._model)
            try:
                _attach(self._model, _Rounding(observer, **watched))
                _look_up(self._model, implementation)
                exact = implementation == self._plain
                _check(self._model, observer, expected, _probe(self._model), exact=exact)
            except UnsupportedError:
                self._model.set_attn_implementation(before)
                raise
            finally:
                _attach(self._model, _Rounding(self._change))
        self._checked.add(implementation)


def attending_blocks(config: PreTrainedConfig) -> list[int]:
    """The blocks with keys and values, in order."""
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["attention"] * config.num_hidden_layers
    return [index for index, kind in enumerate(kinds) if kind not in WITHOUT_CACHE]


def attention_widths(block: nn.Module, sample: Sample, index: int) -> dict[str, dict[str, int]]:
    """Unit -> role -> the width of its rows, found on shapes alone; {} for attention out of reach.

    The rows of probabilities are as wide as the text is long and are left out.
    """
    shapes_only, observer = copy.deepcopy(block).to("meta"), _Observer()
    watched = {"kv_cache": parse_operand("int8"), "qk": parse_operand("int8")}
    _attach(shapes_only, _Rounding(observer, **watched))
    configs = {id(c): c for m in shapes_only.modules() if (c := getattr(m, "config", None))}
    for config in configs.values():
        if config._attn_implementation not in IMPLEMENTATIONS:
            return {}
        config._attn_implementation = f"{PREFIX}{config._attn_implementation}"
    meta = Sample(to_meta(sample.hidden), to_meta(sample.calls))
    with torch.no_grad():
        meta.run(index, shapes_only)
    found = {role: width for (_, role), width in observer.widths.items()}
    if not found:
        return {}
    return {
        "kv_cache": {role: found[role] for role in ROLES["kv_cache"]},
        "qk": {role: found[role] for role in ROLES["qk"]},
        "pv": {"values": found["cached values"]},
    }


@dataclass(eq=False)
class _Observer:
    """Changes nothing; keeps the largest magnitude of each sample, and the width of each row."""

    largest: dict[tuple[nn.Module, str], list[Tensor]] = field(default_factory=dict)
    formats: dict[tuple[nn.Module, str], ActivationFormat] = field(default_factory=dict)
    widths: dict[tuple[nn.Module, str], int] = field(default_factory=dict)

    def __call__(self, module: nn.Module, role: str, format: ActivationFormat, x: Tensor) -> Tensor:
        key = module, role
        self.largest.setdefault(key, []).append(x.abs().amax().float().view(1))
        self.formats[key], self.widths[key] = format, x.shape[-1]
        return x

    def scales(self) -> dict[tuple[nn.Module, str], Tensor]:
        """The [1, 1] scale of everything that has a static one."""
        found = {}
        for key, samples in self.largest.items():
            format, each = self.formats[key], torch.stack(samples)
            if not format.dynamic:
                amax = each.amin(0) if format.observed == "least_absmax" else each.amax(0)
                found[key] = static_input_scale(amax, format)
        return found


@dataclass(frozen=True, eq=False)
class _Rounder:
    names: dict[nn.Module, str]
    scales: dict[tuple[nn.Module, str], Tensor]

    def __call__(self, module: nn.Module, role: str, format: ActivationFormat, x: Tensor) -> Tensor:
        place = f"{self.names[module]}: the {role}"
        if not bool(x.isfinite().all()):
            raise NumericalError(f"{place} hold NaN or Inf, which no code can stand for")
        size, width = format.format.group_size or x.shape[-1], x.shape[-1]
        scale = self.scales.get((module, role))
        if role == PROBABILITIES:  # zeros widen no group, and each token has a key more
            return round_operand(pad(x, (0, -width % size)), format, scale)[..., :width]
        if width % size:
            divisors = [n for n in range(width, 1, -1) if width % n == 0]
            raise FormatError(
                f"{place} have head_dim {width}, which is not a multiple of group_size {size}; use "
                f"groups of {', '.join(map(str, divisors[:4]))}"
            )
        return round_operand(x, format, scale)


def round_operand(
    x: Float[Tensor, "batch heads tokens width"], operand: ActivationFormat, scale: Tensor | None
) -> Float[Tensor, "batch heads tokens width"]:
    """x as its codes stand for it: each (batch, head, token) is a row of the format."""
    if operand.format.symmetric:
        return round_activation(x, operand, scale)
    flat = x.reshape(-1, x.shape[-1]).float()
    return round_to_nearest(flat, operand.format).dequantize().view(x.shape).to(x.dtype)


def _attend_through(implementation: str) -> Callable:
    """The function that stands in for `implementation`, with its signature."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options,
    ) -> tuple[Tensor, Tensor | None]:
        rounding: _Rounding = getattr(module, ATTRIBUTE)
        if (format := rounding.kv_cache) is not None:
            key = rounding.change(module, "cached keys", format, key)
            value = rounding.change(module, "cached values", format, value)
        if (format := rounding.qk) is not None:
            query = rounding.change(module, "queries", format, query)
            key = rounding.change(module, "keys", format, key)
        inner = _inner(module, implementation)
        if (format := rounding.pv) is None:
            return inner(module, query, key, value, attention_mask, **options)
        _, weights = inner(module, query, key, value, attention_mask, **options)
        if weights is None:
            raise UnsupportedError(f"{type(module).__name__} gives no attention probabilities")
        weights = rounding.change(module, PROBABILITIES, format, weights)
        value = rounding.change(module, "values", format, value)
        value = value.repeat_interleave(weights.shape[1] // value.shape[1], 1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    return attend


for _name in IMPLEMENTATIONS:
    AttentionInterface.register(PREFIX + _name, _attend_through(_name))
    AttentionMaskInterface.register(PREFIX + _name, ALL_MASK_ATTENTION_FUNCTIONS[_name])


def _inner(module: nn.Module, implementation: str) -> Callable:
    """What the layer would have called: its own file may have its own table and eager function."""
    names = inspect.unwrap(type(module).forward).__globals__
    try:
        eager = names["eager_attention_forward"]
        return names["ALL_ATTENTION_FUNCTIONS"].get_interface(implementation, eager)
    except KeyError as missing:
        raise UnsupportedError(
            f"{type(module).__name__}: no {missing} beside it; its attention cannot be rounded"
        ) from None


def _install(model: PreTrainedModel, rounding: _Rounding) -> None:
    before = model.config._attn_implementation
    assert before is not None, "a model that was built has one"
    assert not before.startswith(PREFIX), "the attention of this model is rounded already"
    # Only the eager functions hand out the probabilities, which are to be rounded too.
    _look_up(model, "eager" if rounding.pv is not None else before)
    _attach(model, rounding)


def _attach(module: nn.Module, rounding: _Rounding) -> None:
    for each in module.modules():
        setattr(each, ATTRIBUTE, rounding)


def _look_up(model: PreTrainedModel, implementation: str) -> None:
    """Have the model look its attention up under our name for an implementation."""
    if implementation not in IMPLEMENTATIONS or not model._can_set_attn_implementation():
        raise _unreachable(model, "it does not look its attention up by name")
    if model.config._attn_implementation != PREFIX + implementation:
        model.set_attn_implementation(PREFIX + implementation)


def _probe(model: PreTrainedModel) -> Float[Tensor, "tokens vocab"]:
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    limit = getattr(model.config, "max_position_embeddings", None) or PROBE_TOKENS
    count = min(PROBE_TOKENS, limit)
    ids = torch.arange(1, count + 1, device=embedding.device) % len(embedding)
    return model(input_ids=ids[None], use_cache=False).logits[0]


def _check(
    model: PreTrainedModel, observer: _Observer, expected: Tensor, found: Tensor, *, exact: bool
) -> None:
    """Raises UnsupportedError unless each layer with keys passed the observer once, and the logits
    are what they were."""
    layers = len(attending_blocks(model.config))
    calls = {module: len(observer.largest[module, role]) for module, role in observer.largest}
    if len(calls) != layers or set(calls.values()) != {1}:
        raise _unreachable(
            model, f"{len(calls)} of its {layers} layers look attention up by name, once each"
        )
    # The same function gives the same bits. Where probabilities are rounded eager stands for sdpa,
    # which sums in another order: half of the digits of float32 must agree.
    allowed = 0.0 if exact else torch.finfo(torch.float32).eps ** 0.5
    if float((found - expected).abs().max()) > allowed * float(expected.abs().max()):
        raise _unreachable(model, "its logits change when attention is looked up under our name")


def _unreachable(model: PreTrainedModel, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"{type(model).__name__}: the numbers in its attention cannot be rounded: {reason}"
    )


def _cache_bits(rounding: _Rounding, widths: dict[tuple[nn.Module, str], int]) -> float | None:
    """Bits per number in the cache, over all layers."""
    if rounding.kv_cache is None:
        return None
    format = rounding.kv_cache.format
    cached = [width for (_, role), width in widths.items() if role.startswith("cached")]
    bits = [width * _row_bits(format, width) for width in cached]
    return round(sum(bits) / sum(cached), 4)


def _row_bits(format: Format, width: int) -> float:
    """Bits per number of rows this wide, of which a cache stores many without a gap between."""
    if format.group_rows == 1:
        format = replace(format, group_size=format.group_size or width)
    return bits_per_weight(format, (MANY_TOKENS, MANY_TOKENS * width))
