"""Experts that a checkpoint stores as one 3-D tensor, seen as one matrix per expert and projection.

Granite stores [experts, out, in], Llama-4 [experts, in, out], both with gate and up side by side in
one tensor. The matrices are named as serving engines and llm-compressor name them, and as models
do that store experts one by one: `experts.0.gate_proj`. They are parts of the file like any other
tensor; nothing is copied.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection
from dataclasses import replace

from torch import nn

from pennyweight.model.adapt import Source
from pennyweight.model.checkpoint import Checkpoint, Cut, TensorInfo

ROLES = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
SINGLE = re.compile(r"(.+)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
# How a module is called whose experts `adapt.UnfusedExperts` can stand in for.
CALLS = (
    ("hidden_states", "top_k_index", "top_k_weights"),
    ("hidden_states",),
)
Fused = dict[str, dict[str, list[Source]]]


def split_experts(
    checkpoint: Checkpoint, model: nn.Module, plain: dict[str, Source]
) -> tuple[Checkpoint, dict[str, Source], Fused]:
    """The checkpoint with one tensor per expert and projection, and what fills the parameters.

    plain: parameter -> source. Returns it without the 3-D parameters that are taken apart, and
    these as parameter -> role -> the sources of all experts.
    """
    tensors, left, fused = dict(checkpoint.tensors), dict(plain), {}
    for name, module in model.named_modules():
        flipped = _layout(module)
        for attribute, roles in ROLES.items():
            parameter = f"{name}.{attribute}"
            if flipped is None or parameter not in plain:
                continue
            source = left.pop(parameter)
            source.check(tuple(module.get_parameter(attribute).shape), parameter)
            whole = tensors.pop(source.key)
            parts = _parts(whole, _prefix(source.key, parameter), roles, flipped)
            tensors |= {info.name: info for infos in parts.values() for info in infos}
            fused[parameter] = {
                role: [Source(info.name, info.shape) for info in infos]
                for role, infos in parts.items()
            }
    return replace(checkpoint, tensors=tensors), left, fused


def single_expert(key: str, parameters: Collection[str], rename: Callable[[str], str]):
    """(parameter, role) that a tensor of one expert belongs to; None if it is no such tensor.

    rename: from a name in the checkpoint to the name in the model.
    """
    found = SINGLE.fullmatch(key)
    if found is None:
        return None
    prefix, _, role = found.groups()
    attribute = next(name for name, roles in ROLES.items() if role in roles)
    parameter = rename(f"{prefix}.{attribute}")
    return (parameter, role) if parameter in parameters else None


def rejoin(checkpoint: Checkpoint, quantized: Collection[str]) -> Checkpoint:
    """The checkpoint with every 3-D tensor whole again of which no part is quantized."""
    apart = {
        info.whole.name for info in checkpoint.tensors.values()
        if info.whole is not None and info.name in quantized
    }  # fmt: skip
    tensors: dict[str, TensorInfo] = {}
    for name, info in checkpoint.tensors.items():
        if info.whole is None or info.whole.name in apart:
            tensors[name] = info
        else:
            tensors[info.whole.name] = info.whole
    return replace(checkpoint, tensors=tensors)


def _layout(module: nn.Module) -> bool | None:
    """Whether the weights are stored [in, out]; None if this is not a layout known here."""
    own = dict(module.named_parameters(recurse=False))
    if set(own) != set(ROLES) or any(parameter.ndim != 3 for parameter in own.values()):
        return None
    if not getattr(module, "is_concatenated", True) or "act_fn" not in module._modules:
        return None
    call = tuple(inspect.signature(type(module).forward).parameters)[1:]
    (_, rows, cols), (_, out, inside) = own["gate_up_proj"].shape, own["down_proj"].shape
    if call not in CALLS:
        return None
    if (rows, cols) == (2 * inside, out):
        return False
    return True if (rows, cols) == (inside, 2 * out) else None


def _prefix(key: str, parameter: str) -> str:
    """What the experts' names begin with: of the checkpoint, if it uses the model's words."""
    parent, _, attribute = parameter.rpartition(".")
    before, _, last = key.rpartition(".")
    return before if last == attribute else parent


def _parts(
    whole: TensorInfo, prefix: str, roles: tuple[str, ...], flipped: bool
) -> dict[str, list[TensorInfo]]:
    """Role -> one matrix [out, in] for each expert."""
    experts, rows, cols = whole.shape
    out_features, in_features = (cols, rows) if flipped else (rows, cols)
    size, share = (whole.stop - whole.start) // experts, out_features // len(roles)
    parts: dict[str, list[TensorInfo]] = {}
    for index, role in enumerate(roles):
        for expert in range(experts):
            start = whole.start + expert * size
            info = replace(
                whole, name=f"{prefix}.{expert}.{role}.weight", shape=(share, in_features),
                start=start, stop=start + size, whole=whole,
            )  # fmt: skip
            if flipped:
                info = replace(info, cut=Cut(width=cols, column=index * share, flipped=True))
            else:
                half = size // len(roles)
                info = replace(info, start=start + index * half, stop=start + (index + 1) * half)
            parts.setdefault(role, []).append(info)
    return parts
