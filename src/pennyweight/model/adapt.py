"""Turn every projection into an nn.Linear named as in the checkpoint.

Two kinds are not: GPT-2's Conv1D, a linear with its weight transposed; and the experts that
transformers fuses into 3-D parameters, which checkpoints and engines store one by one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pennyweight.core import CheckpointError, UnsupportedError


@dataclass(frozen=True)
class Source:
    """The checkpoint tensor behind a parameter; `transposed` if it is stored [in, out]."""

    key: str
    shape: tuple[int, ...]
    packed: bool = False  # stored in codes that are [out, in] even for a Conv1D
    transposed: bool = False

    def check(self, shape: tuple[int, ...], name: str) -> None:
        stored = self.shape[::-1] if self.transposed else self.shape
        if stored != shape:
            raise CheckpointError(
                f"{self.key}: shape {list(self.shape)} in the checkpoint, but {name} of the model "
                "that "
                f"config.json describes has {list(shape)}; is config.json of another model?"
            )


def adapt(
    model: nn.Module,
    plain: dict[str, Source],
    fused: dict[str, dict[str, list[Source]]],
    language_path: str = "",
) -> dict[str, Source]:
    """Rewrite `model` in place; returns parameter -> source for its new parameters.

    language_path: the part that has experts; an encoder of images beside it has other 3-D
    parameters.
    """
    sources = dict(plain)
    _unfuse_experts(model, fused, sources)
    _replace_conv1d(model, sources)
    _refuse_joined_experts(model, language_path)
    return sources


def _refuse_joined_experts(model: nn.Module, language_path: str) -> None:
    """What `experts.split_experts` left, because it does not know the layout."""
    for name, module in model.get_submodule(language_path).named_modules(prefix=language_path):
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and not isinstance(module, nn.Conv1d):
                raise UnsupportedError(
                    f"{name}.{leaf}: the checkpoint stores the experts of a layer as one tensor "
                    f"of shape {list(parameter.shape)}, in a layout of {type(module).__name__} "
                    "that this version cannot take apart"
                )


def _replace_conv1d(model: nn.Module, sources: dict[str, Source]) -> None:
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Conv1D)]
    for name, conv in found:
        in_features, out_features = conv.weight.shape
        linear = nn.Linear(in_features, out_features, bias=conv.bias is not None, device="meta")
        _replace(model, name, linear.requires_grad_(False))
        if stored := sources.get(f"{name}.weight"):  # a missing one is reported with all others
            sources[f"{name}.weight"] = replace(stored, transposed=not stored.packed)


def _unfuse_experts(model: nn.Module, fused, sources: dict[str, Source]) -> None:
    parents: dict[str, dict[str, dict[str, list[Source]]]] = {}
    for name, patterns in fused.items():
        parent, _, attribute = name.rpartition(".")
        parents.setdefault(parent, {})[attribute] = patterns
    for name, attributes in parents.items():
        if set(attributes) != {"gate_up_proj", "down_proj"}:
            raise UnsupportedError(
                f"{name}: the checkpoint stores {', '.join(attributes)} in parts that "
                "transformers joins "
                "in a way this version does not know how to take apart"
            )
        experts = UnfusedExperts(model.get_submodule(name), attributes)
        _replace(model, name, experts)
        sources |= {f"{name}.{local}.weight": source for local, source in experts.sources.items()}


class UnfusedExperts(nn.Module):
    """The experts of one layer as one nn.Linear per projection, named as in the checkpoint."""

    def __init__(self, original: nn.Module, attributes: dict[str, dict[str, list[Source]]]) -> None:
        super().__init__()
        self.kind = type(original).__name__
        self.original_gate = getattr(original, "_apply_gate", None)
        self.act_fn = original.get_submodule("act_fn")
        columns = [*attributes["gate_up_proj"].values(), *attributes["down_proj"].values()]
        if len(columns) != 3 or len({len(column) for column in columns}) != 1:
            raise UnsupportedError("experts are not stored as gate, up and down of each expert")
        self.sources: dict[str, Source] = {}
        self.names: list[tuple[str, str, str]] = []  # gate, up and down of each expert
        ordered = [
            sorted(column, key=lambda source: expert_number(source.key)) for column in columns
        ]
        count = len(original.get_parameter("gate_up_proj"))
        for column in ordered:
            if [expert_number(source.key) for source in column] != list(range(count)):
                raise CheckpointError(
                    f"{column[0].key}: {len(column)} such experts in the checkpoint, but the model "
                    f"of config.json has {count}, numbered from 0; is it of another model?"
                )
        for gate, up, down in zip(*ordered, strict=True):
            self.names.append((self._add(gate), self._add(up), self._add(down)))

    def _add(self, source: Source) -> str:
        number, role = re.findall(r"\.(\d+)\.([^.]+)\.weight$", source.key)[0]
        if number not in self._modules:
            self.add_module(number, nn.Module())
        out_features, in_features = source.shape
        linear = nn.Linear(in_features, out_features, bias=False, device="meta")
        self.get_submodule(number).add_module(role, linear.requires_grad_(False))
        self.sources[f"{number}.{role}"] = source
        return f"{number}.{role}"

    def forward(
        self,
        hidden: Tensor,
        top_k_index: Tensor | None = None,
        top_k_weights: Tensor | None = None,
    ) -> Tensor:
        """hidden [tokens, in]; index and weight of the chosen experts [tokens, k].

        Without these (Llama-4), hidden holds the tokens once for each expert, one expert below the
        other, and zeros where a token does not go to it.
        """
        if top_k_index is None or top_k_weights is None:
            return self._dispatched(hidden)
        out = torch.zeros_like(hidden)
        for number in range(len(self.names)):
            if (
                hidden.is_meta
            ):  # nobody can say which tokens go where, and every expert must be seen
                out = out + self.expert(
                    number, hidden.clone()
                )  # each expert has an input of its own
                continue
            token, choice = torch.where(top_k_index == number)
            if len(token):
                value = self.expert(number, hidden[token]) * top_k_weights[token, choice, None]
                out.index_add_(0, token, value.to(out.dtype))
        return out

    def _dispatched(self, hidden: Tensor) -> Tensor:
        """As `forward`, with the result in the places of the input: an expert makes 0 of 0."""
        parts = hidden.view(len(self.names), -1, hidden.shape[-1])
        if hidden.is_meta:
            outs = [self.expert(number, part.clone()) for number, part in enumerate(parts)]
            return torch.cat(outs)
        out = torch.zeros_like(parts)
        for number, part in enumerate(parts):
            rows = part.any(-1)
            if rows.any():
                out[number, rows] = self.expert(number, part[rows])
        return out.view(hidden.shape)

    def expert(self, number: int, x: Tensor) -> Tensor:
        gate, up, down = (self.get_submodule(name) for name in self.names[number])
        if self.original_gate is not None:
            return down(self.original_gate(torch.cat((gate(x), up(x)), -1)))
        return down(self.act_fn(gate(x)) * up(x))


def expert_number(key: str) -> int:
    return int(re.findall(r"\.(\d+)\.", key)[-1])


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
