"""Write a quantized checkpoint: what is quantized as its target stores it, all else untouched.

Tensors that are not quantized and all files that are not weights are carried over byte for byte.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pennyweight.export.base import Linear, Part, Target
from pennyweight.model.checkpoint import INDEX, SINGLE, Checkpoint
from pennyweight.model.writer import Entry, disk_error, write_safetensors, write_text

SHARD_BYTES = 4_000_000_000
WEIGHT_FILES = (
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".ot", ".ckpt",
)  # fmt: skip
OURS = ("README.md", "config.json", INDEX, "plan.json", "proof.json")


@dataclass(frozen=True, kw_only=True)
class Census:
    """Where every source tensor and file went."""

    quantized: dict[str, list[str]]  # source tensor -> stored tensors
    copied: list[str]
    rewritten: list[str]  # by a transform, and not quantized
    dropped_files: dict[str, str]  # file -> why


def write_checkpoint(
    checkpoint: Checkpoint,
    linears: Sequence[Linear],
    kept: dict[str, str],
    rewritten: Mapping[str, Part],
    out: Path,
    target: Target,
) -> Census:
    """Write the checkpoint into `out`, an empty directory.

    kept: tensor -> why it is not quantized. rewritten: tensor -> what a transform made of it.
    Raises FormatError if the target cannot hold a linear, before anything is written.
    """
    quantized = {f"{linear.name}.weight": _parts(linear, target) for linear in linears}
    stored = quantized | {name: {name: part} for name, part in rewritten.items()}
    order = sorted(checkpoint.tensors.values(), key=lambda info: (info.file, info.start))
    entries = [entry for info in order for entry in _entries(checkpoint, info.name, stored)]
    _write_shards(entries, out)
    config = dict(checkpoint.config)
    left = _ignored(checkpoint, set(quantized), kept) - {n for each in linears for n in each.names}
    quantization = target.config(linears, sorted(left))
    if quantization is not None:
        config["quantization_config"] = quantization
    write_text(out / "config.json", json.dumps(config, indent=2) + "\n")
    return Census(
        quantized={name: list(parts) for name, parts in quantized.items()},
        rewritten=list(rewritten),
        copied=[name for name in checkpoint.tensors if name not in stored],
        dropped_files=_copy_side_files(checkpoint.path, out),
    )


def _parts(linear: Linear, target: Target) -> dict[str, Part]:
    return {f"{linear.name}.{suffix}": part for suffix, part in target.parts(linear).items()}


def _entries(
    checkpoint: Checkpoint, name: str, stored: dict[str, dict[str, Part]]
) -> Iterator[Entry]:
    if name not in stored:
        info = checkpoint.tensors[name]
        make = lambda: checkpoint.read(name)
        yield Entry(name=name, dtype=info.dtype, shape=info.shape, make=make)
        return
    for key, part in stored[name].items():
        yield Entry(name=key, dtype=part.dtype, shape=part.shape, make=part.make)


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


def _ignored(checkpoint: Checkpoint, quantized: set[str], kept: dict[str, str]) -> set[str]:
    """Matrices that an engine would otherwise look for in quantized form."""
    names = [
        name.removesuffix(".weight")
        for name, info in checkpoint.tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2 and name not in quantized
        and not kept.get(name, "").startswith("embedding")
    ]  # fmt: skip
    # Experts that stay in one tensor of the source, which engines know one by one.
    names += [name.removesuffix(".weight") for name in kept if name not in checkpoint.tensors]
    return {*names, "lm_head"}  # a tied head has no tensor of its own, and engines build one


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
