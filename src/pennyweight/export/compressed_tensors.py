"""A compressed-tensors checkpoint, which vLLM, SGLang and transformers load.

Tensors that are not quantized and all files that are not weights are carried over byte for byte.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compressed_tensors
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    QuantizationStrategy,
    QuantizationType,
)
from torch import Tensor

from pennyweight.core import ActivationFormat, Format, Scheme
from pennyweight.formats.compressed_tensors import layout, parts
from pennyweight.model.checkpoint import INDEX, SINGLE, Checkpoint
from pennyweight.model.writer import Entry, disk_error, write_safetensors, write_text

SHARD_BYTES = 4_000_000_000
WEIGHT_FILES = (
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".ot", ".ckpt",
)  # fmt: skip
OURS = ("README.md", "config.json", INDEX, "plan.json", "proof.json")


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One quantized linear: `read` gives its stored parts (codes, scale, ...) when they are
    wanted."""

    name: str  # of the module, as in the checkpoint
    scheme: Scheme
    shape: tuple[int, int]
    read: Callable[[str], Tensor]


@dataclass(frozen=True, kw_only=True)
class Census:
    """Where every source tensor and file went."""

    quantized: dict[str, list[str]]  # source tensor -> stored tensors
    copied: list[str]
    dropped_files: dict[str, str]  # file -> why


def export(
    checkpoint: Checkpoint, linears: Sequence[Linear], kept: dict[str, str], out: Path
) -> Census:
    """Write the checkpoint into `out`, an empty directory. `kept`: tensor -> why it is not
    quantized."""
    by_tensor = {f"{linear.name}.weight": linear for linear in linears}
    order = sorted(checkpoint.tensors.values(), key=lambda info: (info.file, info.start))
    entries = [entry for info in order for entry in _entries(checkpoint, info.name, by_tensor)]
    _write_shards(entries, out)
    config = quantization_config(linears, _ignored(checkpoint, by_tensor, kept))
    text = json.dumps(checkpoint.config | {"quantization_config": config}, indent=2) + "\n"
    write_text(out / "config.json", text)
    return Census(
        quantized={
            name: [f"{linear.name}.{suffix}" for suffix in parts(linear.scheme, linear.shape)]
            for name, linear in by_tensor.items()
        },
        copied=[name for name in checkpoint.tensors if name not in by_tensor],
        dropped_files=_copy_side_files(checkpoint.path, out),
    )


def quantization_config(linears: Sequence[Linear], ignore: list[str]) -> dict[str, Any]:
    """The `quantization_config` of config.json, built and validated by the library's own
    classes."""
    by_scheme: dict[str, list[Linear]] = {}
    for linear in linears:
        by_scheme.setdefault(linear.scheme.name, []).append(linear)
    uniform = len(by_scheme) == 1
    groups, layouts = {}, set()
    for number, members in enumerate(by_scheme.values()):
        scheme = members[0].scheme
        layouts.add(layout(scheme))
        groups[f"group_{number}"] = QuantizationScheme(
            targets=["Linear"] if uniform else [member.name for member in members],
            weights=weight_args(scheme.weight),
            input_activations=activation_args(scheme.activation),
            format=CompressionFormat(layout(scheme)),
        )
    config = QuantizationConfig(
        config_groups=groups,
        format=layouts.pop() if len(layouts) == 1 else "mixed-precision",
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=ignore,
    )
    data = json.loads(config.model_dump_json())
    return data | {"version": compressed_tensors.__version__}


def weight_args(format: Format) -> QuantizationArgs:
    grouped = format.group_size is not None
    return QuantizationArgs(
        num_bits=format.grid.bits,
        type=QuantizationType.INT,
        symmetric=format.symmetric,
        strategy=QuantizationStrategy.GROUP if grouped else QuantizationStrategy.CHANNEL,
        group_size=format.group_size,
        dynamic=False,
    )


def activation_args(activation: ActivationFormat | None) -> QuantizationArgs | None:
    if activation is None:
        return None
    return QuantizationArgs(
        num_bits=activation.format.grid.bits,
        type=QuantizationType.INT,
        symmetric=True,
        strategy=QuantizationStrategy.TOKEN if activation.dynamic else QuantizationStrategy.TENSOR,
        dynamic=activation.dynamic,
    )


def _entries(checkpoint: Checkpoint, name: str, by_tensor: dict[str, Linear]) -> Iterator[Entry]:
    linear = by_tensor.get(name)
    if linear is None:
        info = checkpoint.tensors[name]
        yield Entry(
            name=name, dtype=info.dtype, shape=info.shape, make=lambda: checkpoint.read(name)
        )
        return
    for suffix, part in parts(linear.scheme, linear.shape).items():
        make = lambda part=part: part.make(linear.read)
        yield Entry(name=f"{linear.name}.{suffix}", dtype=part.dtype, shape=part.shape, make=make)


def _write_shards(entries: list[Entry], out: Path) -> None:
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        size = sum(e.size_bytes for e in shards[-1])
        if shards[-1] and size + entry.size_bytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(entry)
    if len(shards) == 1:
        write_safetensors(out / SINGLE, shards[0], {"format": "pt"})
        return
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(out / file, shard, {"format": "pt"})
        places |= {entry.name: file for entry in shard}
    total = sum(entry.size_bytes for entry in entries)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write_text(out / INDEX, json.dumps(index, indent=2) + "\n")


def _ignored(
    checkpoint: Checkpoint, by_tensor: dict[str, Linear], kept: dict[str, str]
) -> list[str]:
    """Matrices that an engine would otherwise look for in quantized form."""
    names = [
        name.removesuffix(".weight")
        for name, info in checkpoint.tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2 and name not in by_tensor
        and not kept.get(name, "").startswith("embedding")
    ]  # fmt: skip
    return sorted(
        {*names, "lm_head"}
    )  # a tied head has no tensor of its own, and engines build one


def _copy_side_files(source: Path, out: Path) -> dict[str, str]:
    dropped = {}
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        name = str(file.relative_to(source))
        if any(part.startswith(".") for part in Path(name).parts):
            continue  # .git, .cache, .gitattributes: of the repository, not of the model
        if file.suffix in WEIGHT_FILES or name == INDEX:
            if file.suffix != ".safetensors" and name != INDEX:
                dropped[name] = "the unquantized weights in another file format"
            continue
        if name == "config.json":
            continue
        target = out / (f"source_{name}" if name in OURS else name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        except OSError as error:
            raise disk_error(target, error) from None
    return dropped
