"""A model's modules without its weights, and the checkpoint name of every parameter.

transformers builds the modules from config.json on the meta device. Which checkpoint tensor fills
which parameter is asked of transformers' own conversion tables, so a renamed or fused architecture
needs no table here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from pennyweight.core import CheckpointError, UnsupportedError
from pennyweight.model.adapt import Source, adapt
from pennyweight.model.auto import auto_class
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.experts import ROLES, single_expert, split_experts

# What a wrong value in config.json becomes in code that does not check it: transformers checks
# few. No OSError but the one for a missing file, and nothing that Python keeps for itself.
CONFIG_FAULTS = (
    ArithmeticError, AssertionError, AttributeError, FileNotFoundError, ImportError, LookupError,
    RuntimeError, StrictDataclassError, TypeError, ValueError,
)  # fmt: skip
WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # all that float32 holds exactly
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")


@dataclass(frozen=True)
class Skeleton:
    """The adapted model: every projection is an nn.Linear with a name that the checkpoint uses."""

    checkpoint: Checkpoint  # with one tensor for each expert and projection
    model: PreTrainedModel
    blocks_path: str  # of the ModuleList of decoder blocks, e.g. "model.layers"
    sources: dict[str, Source]  # parameter name -> where its values come from

    @classmethod
    def build(cls, checkpoint: Checkpoint, trust_remote_code: bool = False) -> Skeleton:
        """Raises UnsupportedError for what is not a decoder that transformers can build."""
        config = _read_config(checkpoint, trust_remote_code)
        # First on shapes alone: no buffer is allocated before the checkpoint bears the sizes out.
        with torch.device("meta"):
            _build(checkpoint, config, trust_remote_code)
        checkpoint, model, sources = _build(checkpoint, config, trust_remote_code)
        return cls(checkpoint, model, _find_blocks(model), sources)

    @property
    def blocks(self) -> nn.ModuleList:
        blocks = self.model.get_submodule(self.blocks_path)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def block_prefix(self, index: int) -> str:
        return f"{self.blocks_path}.{index}."

    def block_sources(self, index: int) -> dict[str, Source]:
        """Parameter name within the block -> its source."""
        prefix = self.block_prefix(index)
        return {
            name.removeprefix(prefix): source
            for name, source in self.sources.items()
            if name.startswith(prefix)
        }

    def outside_sources(self) -> dict[str, Source]:
        """The parameters that belong to no block: embeddings, final norm, head."""
        prefix = f"{self.blocks_path}."
        return {k: v for k, v in self.sources.items() if not k.startswith(prefix)}

    @cached_property
    def language_path(self) -> str:
        """The module that holds embedding and blocks; an encoder of images lies outside."""
        return language_path(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype most of the checkpoint's weights are stored in."""
        sizes: dict[torch.dtype, int] = {}
        for source in self.sources.values():
            info = self.checkpoint.tensors[source.key]
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.size_bytes
        return max(sizes, key=lambda dtype: sizes[dtype])

    def read(self, source: Source) -> Tensor:
        """The source's values as the parameter wants them, checked to be finite."""
        return self.checkpoint.read_finite(source.key, source.transposed)


@contextmanager
def config_faults(checkpoint: Checkpoint) -> Iterator[None]:
    """What transformers raises over values it cannot work with, as an UnsupportedError."""
    try:
        yield
    except CONFIG_FAULTS as error:
        kind = checkpoint.config.get("model_type", "no model_type")
        raise UnsupportedError(
            f"{checkpoint.path}: transformers cannot build a decoder from config.json ({kind!r}): "
            f"{type(error).__name__}: {' '.join(str(error).split()):.400}"
        ) from error


def _read_config(checkpoint: Checkpoint, trust_remote_code: bool) -> PreTrainedConfig:
    config, path = checkpoint.config, checkpoint.path
    if "auto_map" in config and not trust_remote_code:
        raise UnsupportedError(
            f"{path}: the model brings its own code (auto_map in config.json), which would run on "
            "this "
            "machine; read it, then pass --trust-remote-code"
        )
    _refuse_quantized(checkpoint)
    for part in (config, config.get("text_config")):
        _check_layers(part if isinstance(part, dict) else {}, checkpoint)
    with config_faults(checkpoint):
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)


def _check_layers(config: dict[str, Any], checkpoint: Checkpoint) -> None:
    """Every layer has tensors of its own. transformers would build a billion layers if told to."""
    for key in LAYER_COUNTS:
        count = config.get(key)
        if isinstance(count, int | float) and count > len(checkpoint.tensors):
            raise CheckpointError(
                f"{checkpoint.path}: config.json says {key} = {count}, but there are only "
                f"{len(checkpoint.tensors)} tensors; is config.json of another model?"
            )


def _build(
    checkpoint: Checkpoint, config: PreTrainedConfig, trust_remote_code: bool
) -> tuple[Checkpoint, PreTrainedModel, dict[str, Source]]:
    """The checkpoint, the adapted model, its parameters on the meta device, and what fills each of
    them."""
    with config_faults(checkpoint), init_empty_weights(include_buffers=False):
        model = auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    model = model.eval().requires_grad_(False)
    plain, fused = _match_names(checkpoint, model)
    checkpoint, plain, split = split_experts(checkpoint, model, plain)
    sources = adapt(model, plain, fused | split, language_path(model))
    _add_tied(model, sources)
    _require_all(model, sources, checkpoint)
    return checkpoint, model, sources


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    text = checkpoint.config.get("text_config")
    parts = [checkpoint.config, text if isinstance(text, dict) else {}]
    quantized = next((q for part in parts if (q := part.get("quantization_config"))), None)
    low = [
        i
        for i in checkpoint.tensors.values()
        if i.dtype.itemsize == 1 and i.dtype.is_floating_point
    ]
    if quantized or low:
        kind = (
            (quantized or {}).get("quant_method", "fp8") if isinstance(quantized, dict) else "fp8"
        )
        where = f"; {low[0].name} is {str(low[0].dtype).removeprefix('torch.')}" if low else ""
        raise UnsupportedError(
            f"{checkpoint.path}: the source is already quantized ({kind}{where}); "
            "start from its 16-bit original, or dequantize it first"
        )


def _match_names(
    checkpoint: Checkpoint, model: PreTrainedModel
) -> tuple[dict[str, Source], dict[str, dict[str, list[Source]]]]:
    """Parameter -> source, and fused parameter -> converter pattern -> sources, in pattern
    order."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    state = model.state_dict()
    rename = lambda key: rename_source_key(
        key, renamings, converters, model.base_model_prefix, state
    )
    plain: dict[str, Source] = {}
    fused: dict[str, dict[str, list[Source]]] = {}
    for key, info in checkpoint.tensors.items():
        source = Source(key, info.shape, info.packed)
        name, pattern = rename(key)
        if name not in state:
            # If it is not part of the model transformers builds, it is carried over as it is.
            if found := single_expert(key, state, lambda key: rename(key)[0]):
                parameter, role = found
                roles = ROLES[parameter.rpartition(".")[2]]
                fused.setdefault(parameter, {r: [] for r in roles})[role].append(source)
        elif pattern is None:
            plain[name] = source
        else:
            order = next(c.source_patterns for c in converters if pattern in c.source_patterns)
            fused.setdefault(name, {p: [] for p in order})[pattern].append(source)
    return plain, fused


def _add_tied(model: PreTrainedModel, sources: dict[str, Source]) -> None:
    """A tied head and embedding are stored once, under either name."""
    head = model.get_output_embeddings()
    if head is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    names = {id(module): name for name, module in model.named_modules()}
    pair = [f"{names[id(m)]}.weight" for m in (model.get_input_embeddings(), head)]
    for name, other in (pair, pair[::-1]):
        if name not in sources and other in sources:
            sources[name] = sources[other]


def _require_all(
    model: PreTrainedModel, sources: dict[str, Source], checkpoint: Checkpoint
) -> None:
    missing = [
        name for name, _ in model.named_parameters(remove_duplicate=False) if name not in sources
    ]
    if missing:
        raise CheckpointError(
            f"{checkpoint.path}: no tensor for {missing[0]} and {len(missing) - 1} other "
            f"parameters of {type(model).__name__}; is config.json of another model?"
        )
    for name, parameter in model.named_parameters(remove_duplicate=False):
        sources[name].check(tuple(parameter.shape), name)
        info = checkpoint.tensors[sources[name].key]
        if info.dtype not in WEIGHT_DTYPES:
            raise UnsupportedError(
                f"{info.file}: {info.name}: dtype {str(info.dtype).removeprefix('torch.')}; "
                "expected float16, bfloat16 or float32; convert it, or start from the original"
            )


def language_path(model: PreTrainedModel) -> str:
    """The innermost module around the input embedding that has a list of blocks.

    Of a model that sees images it leaves out their encoder and projector; "" is the whole model.
    """
    embedding = model.get_input_embeddings()
    path = next((name for name, module in model.named_modules() if module is embedding), "")
    while path:
        path = path.rpartition(".")[0]
        if any(isinstance(module, nn.ModuleList) for module in model.get_submodule(path).modules()):
            break
    return path


def _find_blocks(model: PreTrainedModel) -> str:
    """The ModuleList with the most parameters: the decoder's repeated blocks."""
    inside = language_path(model)
    sizes = {
        f"{inside}.{name}".strip("."): sum(p.numel() for p in module.parameters())
        for name, module in model.get_submodule(inside).named_modules()
        if isinstance(module, nn.ModuleList)
    }
    if not sizes:
        raise UnsupportedError(f"{type(model).__name__} has no list of blocks to walk")
    return max(sizes, key=lambda name: sizes[name])
