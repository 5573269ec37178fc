"""What a model is made of, seen from quantization: its linears, their roles, and who shares an
input."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from pennyweight.model.adapt import UnfusedExperts
from pennyweight.model.capture import capture_shapes
from pennyweight.model.skeleton import Skeleton, config_faults
from pennyweight.model.topology import Topology, find_topology

OUTSIDE = "beside the language model: encoder or projector of images"
ROUTER_WIDTH = 8  # a linear this narrow or narrower decides or gates; it is not worth a scale


@dataclass(frozen=True)
class Site:
    """One linear of one block that can be quantized."""

    name: str  # of the module in the checkpoint: the tensor's name without `.weight`
    block: int
    local: str  # name within the block
    shape: tuple[int, int]  # out, in

    @property
    def tensor(self) -> str:
        return f"{self.name}.weight"


@dataclass(frozen=True)
class Survey:
    """The sites of a model in the order they run, and the tensors that stay as they are."""

    skeleton: Skeleton
    topologies: tuple[Topology, ...]
    sites: tuple[Site, ...]
    kept: dict[str, str]  # tensor name -> why it is not quantized
    head: Site | None = None  # a head that is not tied: quantized where a rule names it

    def site(self, block: int, local: str) -> Site | None:
        return self._by_place.get((block, local))

    @cached_property
    def _by_place(self) -> dict[tuple[int, str], Site]:
        return {(site.block, site.local): site for site in self.sites}

    @cached_property
    def by_tensor(self) -> dict[str, Site]:
        return {site.tensor: site for site in self.sites}

    @cached_property
    def quantizable(self) -> dict[str, Site]:
        """By tensor: the linears of the blocks, and the head."""
        return self.by_tensor | ({self.head.tensor: self.head} if self.head else {})

    def steps(self, planned: Container[str]) -> range:
        """What a run does one after the other, each a file: the blocks, and the head if its tensor
        is `planned`."""
        has_head = self.head is not None and self.head.tensor in planned
        return range(len(self.topologies) + has_head)

    def module(self, site: Site) -> str:
        """Its name in the model that transformers builds."""
        prefix = "" if site == self.head else self.skeleton.block_prefix(site.block)
        return f"{prefix}{site.local}"

    def weight(self, site: Site) -> Tensor:
        """The weight [out, in] as the checkpoint stores it, exact, in float32."""
        source = self.skeleton.sources[f"{self.module(site)}.weight"]
        return self.skeleton.read(source).float()

    def fused(self) -> list[tuple[Site, ...]]:
        """Sites that serving engines run as one matrix product."""
        places, found = self._by_place, []
        for block, topology in enumerate(self.topologies):
            for names in topology.fused():
                sites = tuple(places[block, n] for n in names if (block, n) in places)
                if len(sites) > 1:
                    found.append(sites)
        return found


def survey(skeleton: Skeleton) -> Survey:
    """Run the model on shapes alone and list what can be quantized."""
    blocks = skeleton.blocks
    with config_faults(skeleton.checkpoint):
        sample = capture_shapes(skeleton)
        topologies = tuple(find_topology(block, sample, i) for i, block in enumerate(blocks))
    sites, kept = [], {}
    for index, topology in enumerate(topologies):
        sources = skeleton.block_sources(index)
        for local in topology.linears:
            source = sources[f"{local}.weight"]
            linear = blocks[index].get_submodule(local)
            assert isinstance(linear, nn.Linear)
            if linear.out_features <= ROUTER_WIDTH or _is_router(blocks[index], local, linear):
                kept[source.key] = "router or gate"
                continue
            shape = (linear.out_features, linear.in_features)
            sites.append(Site(source.key.removesuffix(".weight"), index, local, shape))
    taken = {site.tensor for site in sites}
    for name in skeleton.checkpoint.tensors:
        if name not in taken and name not in kept:
            kept[name] = _reason(skeleton, name)
    return Survey(skeleton, topologies, tuple(sites), kept, _head(skeleton))


def _head(skeleton: Skeleton) -> Site | None:
    """The head, as if it were in one more block behind the last; None if it is the embedding."""
    model = skeleton.model
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or _tied(model):
        return None
    local = next(name for name, module in model.named_modules() if module is head)
    source = skeleton.sources[f"{local}.weight"]
    if source.transposed or source.key == _embedding_key(skeleton):
        return None
    shape = (head.out_features, head.in_features)
    return Site(source.key.removesuffix(".weight"), len(skeleton.blocks), local, shape)


def _embedding_key(skeleton: Skeleton) -> str:
    embedding = skeleton.model.get_input_embeddings()
    modules = skeleton.model.named_modules()
    name = next(name for name, module in modules if module is embedding)
    return skeleton.sources[f"{name}.weight"].key


def _is_router(block: nn.Module, local: str, linear: nn.Linear) -> bool:
    """One output for each of the experts beside it."""
    beside = block.get_submodule(local.rpartition(".")[0]).children()
    return any(
        isinstance(module, UnfusedExperts) and len(module.names) == linear.out_features
        for module in beside
    )


def _reason(skeleton: Skeleton, key: str) -> str:
    model = skeleton.model
    names = {name for name, source in skeleton.sources.items() if source.key == key}
    if not names:
        return "not part of the model that transformers builds"
    owners = {id(model.get_submodule(name.rpartition(".")[0])) for name in names}
    if owners & {id(model.get_input_embeddings())}:
        return "embedding" + (" tied to lm_head" if len(names) > 1 or _tied(model) else "")
    if owners & {id(model.get_output_embeddings())}:
        return "lm_head" + (" tied to the embedding" if _tied(model) else "")
    inside = f"{skeleton.language_path}.".lstrip(".")
    if not any(name.startswith(inside) for name in names):
        return OUTSIDE
    if len(skeleton.checkpoint.tensors[key].shape) < 2:
        return "bias" if key.endswith("bias") else "norm"
    inside = any(name.startswith(f"{skeleton.blocks_path}.") for name in names)
    return "router or gate" if inside else "outside the blocks"


def _tied(model) -> bool:
    return bool(getattr(model.config, "tie_word_embeddings", False))
