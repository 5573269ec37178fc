"""A model and its reference in memory, whose parts can be exchanged.

Modules are exchanged and no weight is copied, so that a mix of the two costs no memory. Where the
quantized model was rewritten (its norms differ, because a transform moved scales from one layer to
the next), a linear means something only beside its neighbours; the parts are whole blocks then.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from pennyweight.core import CheckpointError, RecipeError, Scheme
from pennyweight.formats.schemes import UNTOUCHED
from pennyweight.model.load import load_model
from pennyweight.model.opened import open_checkpoint
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.words import WordCheckpoint
from pennyweight.pipeline.survey import Site, Survey, survey
from pennyweight.study.units import units

SAME = 0.01  # parameters this near, relatively, differ by the dtype they are stored in
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """How a linear is stored, as far as its file says."""

    name: str  # of the scheme, or what the layout is; "" if it is stored as plain numbers
    bits: int | None = None
    group_size: int | None = None  # None: unknown, or one scale for more than a part of a row
    activation: bool = False  # its input is rounded too
    static: bool = False  # with a scale fixed at calibration


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is exchanged together."""

    name: str
    tensors: tuple[str, ...]  # of the linears in it
    places: tuple[str, ...]  # of the modules that are exchanged
    weights: int


@dataclass(frozen=True, kw_only=True)
class Pair:
    """`mixed` and `restored` compute with what was put in them; the other two never change."""

    reference: PreTrainedModel
    quantized: PreTrainedModel
    mixed: PreTrainedModel  # the reference's shell
    restored: PreTrainedModel  # the quantized model's
    survey: Survey  # of the reference
    granularity: str
    parts: tuple[Part, ...]
    numbers: Mapping[str, Numbers]  # by tensor
    rewritten: tuple[str, ...]  # parameters of blocks that differ and are no linear's
    outside: tuple[str, ...]  # parameters outside the blocks that differ
    fingerprints: tuple[str, str]

    @classmethod
    def load(
        cls, reference: Path, quantized: Path, granularity: str = AUTO, trusted: bool = False
    ) -> Pair:
        """Raises CheckpointError if the two are not one architecture of one size, RecipeError for
        parts that a rewritten model does not have."""
        seen = survey(Skeleton.build(open_checkpoint(reference), trusted))
        models = [load_model(path, torch.float32, trusted) for path in (reference, quantized)]
        check_alike(*models, names=(str(reference), str(quantized)))
        rewritten, outside = differences(*models, survey=seen)
        if rewritten and granularity not in (AUTO, "layer"):
            raise RecipeError(
                f"{quantized}: {rewritten[0]} and {len(rewritten) - 1} other parameters that no "
                f"linear owns differ from {reference}: a transform moved scales between layers, so "
                f"that a {granularity} cannot be exchanged alone; ask for --granularity layer"
            )
        if granularity == AUTO:
            granularity = "layer" if rewritten else "matmul"
        stored = open_checkpoint(quantized)
        return cls(
            reference=models[0], quantized=models[1], mixed=_shell(models[0]),
            restored=_shell(models[1]), survey=seen,
            granularity=granularity, parts=parts(seen, granularity, whole=bool(rewritten)),
            numbers={site.tensor: numbers_of(stored, site.name) for site in seen.sites},
            rewritten=rewritten, outside=outside,
            fingerprints=(seen.skeleton.checkpoint.fingerprint, stored.fingerprint),
        )  # fmt: skip

    def quantize_only(self, chosen: Collection[Part]) -> PreTrainedModel:
        """The reference with these parts of the quantized model."""
        return self._put(self.mixed, chosen, self.quantized, self.reference)

    def restore(self, chosen: Collection[Part]) -> PreTrainedModel:
        """The quantized model with these parts of the reference."""
        return self._put(self.restored, chosen, self.reference, self.quantized)

    def exchange(self, shell: PreTrainedModel, modules: Mapping[str, nn.Module]) -> PreTrainedModel:
        """A shell with these modules in it, at these places."""
        for place, module in modules.items():
            parent, _, child = place.rpartition(".")
            setattr(shell.get_submodule(parent), child, module)
        return shell

    def _put(
        self,
        shell: PreTrainedModel,
        chosen: Collection[Part],
        inside: PreTrainedModel,
        outside: PreTrainedModel,
    ) -> PreTrainedModel:
        names = {part.name for part in chosen}
        modules = {
            place: (inside if part.name in names else outside).get_submodule(place)
            for part in self.parts
            for place in part.places
        }
        return self.exchange(shell, modules)

    def place(self, site: Site) -> str:
        return f"{self.survey.skeleton.block_prefix(site.block)}{site.local}"


def parts(seen: Survey, granularity: str, *, whole: bool) -> tuple[Part, ...]:
    """whole: of a block all modules are exchanged, and not its linears alone."""
    found = []
    for unit in units(seen, granularity):
        sites = [seen.by_tensor[tensor] for tensor in unit.tensors]
        prefixes = [seen.skeleton.block_prefix(site.block) for site in sites]
        places = [f"{prefix}{s.local}" for prefix, s in zip(prefixes, sites, strict=True)]
        found.append(
            Part(
                name=unit.name, tensors=unit.tensors,
                places=(prefixes[0].removesuffix("."),) if whole else tuple(places),
                weights=sum(site.shape[0] * site.shape[1] for site in sites),
            )
        )  # fmt: skip
    return tuple(found)


def check_alike(
    reference: PreTrainedModel, quantized: PreTrainedModel, names: tuple[str, str]
) -> None:
    """Raises CheckpointError naming the first thing that differs."""
    kinds = [type(model).__name__ for model in (reference, quantized)]
    if kinds[0] != kinds[1]:
        raise CheckpointError(
            f"{names[0]} is a {kinds[0]} and {names[1]} is a {kinds[1]}; expected a model and what "
            "was made of it"
        )
    shapes = [
        {k: tuple(p.shape) for k, p in model.named_parameters(remove_duplicate=False)}
        for model in (reference, quantized)
    ]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        first, second = (each.get(name) for each in shapes)
        if first != second:
            said = [str(list(shape)) if shape else "missing" for shape in (first, second)]
            raise CheckpointError(
                f"{name}: {said[0]} in {names[0]} and {said[1]} in {names[1]}; expected a model "
                "and what was made of it"
            )


def differences(
    reference: PreTrainedModel, quantized: PreTrainedModel, survey: Survey
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The parameters that differ and belong to no site: inside blocks, and outside."""
    prefix = survey.skeleton.block_prefix
    owned = {f"{prefix(site.block)}{site.local}" for site in survey.sites}
    others = dict(quantized.named_parameters(remove_duplicate=False))
    inside, outside = [], []
    for name, value in reference.named_parameters(remove_duplicate=False):
        if name.rpartition(".")[0] in owned or _near(value, others[name]):
            continue
        path = f"{survey.skeleton.blocks_path}."
        (inside if name.startswith(path) else outside).append(name)
    return tuple(inside), tuple(outside)


def numbers_of(checkpoint: object, name: str) -> Numbers:
    """How linear `name` of a quantized checkpoint is stored."""
    if isinstance(checkpoint, WordCheckpoint):
        if name not in checkpoint.linears:
            return Numbers(name="")
        words, layout = checkpoint.linears[name], checkpoint.layout
        assert layout is not None
        order = " act-order" if checkpoint.ordered(name) else ""
        return Numbers(
            name=f"{layout.name} W{words.bits} g{words.group_size}{order}",
            bits=words.bits, group_size=words.group_size,
        )  # fmt: skip
    scheme = getattr(checkpoint, "schemes", {}).get(name)
    if not isinstance(scheme, Scheme) or scheme.name == UNTOUCHED:
        return Numbers(name="")
    return Numbers(
        name=scheme.name, bits=scheme.weight.grid.bits, group_size=scheme.weight.group_size,
        activation=scheme.activation is not None,
        static=scheme.activation is not None and not scheme.activation.dynamic,
    )  # fmt: skip


def _near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).norm() <= SAME * a.norm())


def _shell(model: PreTrainedModel) -> PreTrainedModel:
    """A model of its own that shares the memory of every tensor."""
    tensors: Iterable[torch.Tensor] = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, memo={id(value): value for value in tensors})
