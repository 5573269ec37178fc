"""The work directory beside the output: the plan, and one finished file per finished block."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pennyweight.core import CheckpointError, Quantized
from pennyweight.formats.corrections import pack_corrections, unpack_corrections
from pennyweight.formats.storage import pack, unpack
from pennyweight.model.checkpoint import TensorInfo, read_header
from pennyweight.model.writer import Entry, disk_errors, write_safetensors, write_text
from pennyweight.pipeline.plan import Plan, Task, load_plan

PLAN = "plan.json"
CHANGED = ".rewritten"  # what the block file calls a tensor that a transform rewrote


@dataclass(frozen=True, kw_only=True)
class Finished:
    """One quantized linear, and what is known of how it went."""

    tensor: str
    quantized: Quantized
    loss: float  # squared error relative to the signal
    metric: str  # of what: "output" (weighted by the inputs seen) or "weight"
    tokens: int = 0  # calibration tokens its input saw
    input_scale: Tensor | None = None  # [1, 1], of a static activation format

    @property
    def shape(self) -> tuple[int, int]:
        """out, in"""
        return self.quantized.weight.shape

    @property
    def digest(self) -> str:
        """Of the dequantized values: what every later reading of the weight must reproduce."""
        return digest(self.quantized.dequantize())


def digest(weight: Tensor) -> str:
    return hashlib.sha256(weight.contiguous().float().numpy().data).hexdigest()


@dataclass(frozen=True)
class WorkDir:
    path: Path
    plan: Plan

    @staticmethod
    def place(output: Path) -> Path:
        return output.with_name(f"{output.name}.work")

    @classmethod
    def open(cls, output: Path, plan: Plan) -> WorkDir:
        """The work directory of `output`, new or from an interrupted run of the same plan.

        Raises CheckpointError that says what differs if it belongs to another plan.
        """
        path = cls.place(output)
        if (path / PLAN).is_file():
            _same_plan(load_plan(path / PLAN), plan, path)
        else:
            with disk_errors(path):
                path.mkdir(parents=True, exist_ok=True)
                _refuse_others(path)
            write_text(path / PLAN, plan.dump())
        return cls(path, plan)

    def resolve(self) -> WorkDir:
        """The same by its absolute path."""
        return WorkDir(self.path.resolve(), self.plan)

    def block_file(self, index: int) -> Path:
        return self.path / f"block_{index:05}.safetensors"

    def is_done(self, index: int) -> bool:
        return self.block_file(index).is_file()

    def save(
        self,
        index: int,
        finished: list[Finished],
        changed: dict[str, Tensor],
        told: list[str],
    ) -> None:
        """Write the file of block `index`; it appears whole or not at all.

        changed: checkpoint tensor -> its new values, of what a transform rewrote and is not
        quantized. told: what there is to say of the transforms.
        """
        entries = [Entry.of(f"{name}{CHANGED}", value) for name, value in changed.items()]
        facts = {}
        for one in finished:
            parts = pack(one.quantized.weight) | pack_corrections(one.quantized.corrections)
            if one.input_scale is not None:
                parts["input_scale"] = one.input_scale
            entries += [Entry.of(f"{one.tensor}.{part}", tensor) for part, tensor in parts.items()]
            facts[one.tensor] = {
                "shape": list(one.shape), "loss": one.loss, "metric": one.metric,
                "tokens": one.tokens, "notes": dict(one.quantized.notes), "digest": one.digest,
                "bytes": sum(tensor.nbytes for tensor in parts.values()), "parts": {
                    name: (str(part.dtype).removeprefix("torch."), list(part.shape))
                    for name, part in parts.items()
                },
            }  # fmt: skip
        metadata = {
            "plan": self.plan.digest,
            "linears": json.dumps(facts, sort_keys=True),
            "transforms": json.dumps(told),
        }
        write_safetensors(self.block_file(index), entries, metadata)

    def facts(self, index: int) -> dict[str, dict[str, Any]]:
        """Tensor name -> shape, loss, notes, digest of block `index`, without its weights."""
        return json.loads(self._metadata(index)["linears"])

    def told(self, index: int) -> list[str]:
        """What the transforms of block `index` came to."""
        return json.loads(self._metadata(index)["transforms"])

    def _metadata(self, index: int) -> dict[str, str]:
        file = self.block_file(index)
        self._header(index)
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        if metadata.get("plan") != self.plan.digest:
            raise CheckpointError(f"{file}: from another plan; delete {self.path} to start again")
        return metadata

    def _header(self, index: int) -> dict[str, TensorInfo]:
        try:
            return read_header(self.block_file(index))
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. Delete that file, and its block is done again"
            ) from None

    def load(self, index: int, tensor: str, task: Task) -> tuple[Quantized, Tensor | None]:
        """The finished weight and static input scale (or None) of one tensor."""
        shape = self.facts(index)[tensor]["shape"]
        with safe_open(self.block_file(index), framework="pt") as opened:
            parts = {
                name.removeprefix(f"{tensor}."): opened.get_tensor(name).clone()
                for name in list(opened.keys())
                if name.startswith(f"{tensor}.")
            }
        size = (shape[0], shape[1])
        quantized = Quantized(
            weight=unpack(parts, self.plan.scheme(task).weight, size),
            corrections=unpack_corrections(parts, size),
        )
        return quantized, parts.get("input_scale")

    def changed(self, index: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Checkpoint tensor -> dtype and shape, of what a transform rewrote in block `index`."""
        return {
            name.removesuffix(CHANGED): (info.dtype, info.shape)
            for name, info in self._header(index).items()
            if name.endswith(CHANGED)
        }

    def read_changed(self, index: int, tensor: str) -> Tensor:
        with safe_open(self.block_file(index), framework="pt") as opened:
            return opened.get_tensor(f"{tensor}{CHANGED}").clone()

    def part(self, index: int, tensor: str, part: str) -> Tensor:
        """One stored part (`codes`, `scale`, ...) of a finished weight, as bytes are on disk."""
        with safe_open(self.block_file(index), framework="pt") as opened:
            return opened.get_tensor(f"{tensor}.{part}").clone()

    def remove(self) -> None:
        """Delete the directory, the plan last: a deletion that is interrupted can be finished."""
        with disk_errors(self.path):
            for entry in self.path.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
                elif entry.name != PLAN:
                    entry.unlink()
            shutil.rmtree(self.path)


def _refuse_others(path: Path) -> None:
    """The directory will be removed in the end, so nothing of anybody else may be in it."""
    foreign = sorted(file.name for file in path.iterdir() if not file.name.endswith(".partial"))
    if foreign:
        raise CheckpointError(
            f"{path}: is needed as the work directory, but holds {foreign[0]!r} and no {PLAN}; "
            "move it away, or choose another output directory"
        )


def _same_plan(old: Plan, new: Plan, path: Path) -> None:
    before, after = (json.loads(plan.dump()) for plan in (old, new))
    differing = [key for key in after if before.get(key) != after[key]]
    if not differing:
        return
    differing.sort(key=lambda key: key == "calibration_digest")  # it follows from the others
    key = differing[0]
    found, wanted = _difference(key, before[key], after[key])
    others = f" (and {', '.join(differing[1:])})" if differing[1:] else ""
    raise CheckpointError(
        f"{path}: holds blocks of another run; {key}{others} differs: found {found}, "
        f"now {wanted}. Repeat the first command to finish that run, or delete the directory"
    )


def _difference(key: str, before: Any, after: Any) -> tuple[str, str]:
    if isinstance(before, list) and isinstance(after, list):
        pair = next(((b, a) for b, a in zip(before, after, strict=False) if b != a), None)
        before, after = pair if pair else (f"{len(before)} {key}", f"{len(after)} {key}")
    if isinstance(before, dict) and isinstance(after, dict):
        changed = {k for k in before | after if before.get(k) != after.get(k)}
        name = {"tensor": after["tensor"]} if "tensor" in after else {}
        before = name | {k: before.get(k) for k in sorted(changed)}
        after = {k: after.get(k) for k in sorted(changed)}
    return f"{before!s:.200}", f"{after!s:.200}"
