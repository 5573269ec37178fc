"""What a plan decides about: one projection, what an engine fuses, or a whole block.

    matmul   each projection by itself
    fused    projections that serving engines run as one product (q,k,v; gate,up) together, and the
             same projections of all experts of a block together: every plan over these is servable
    layer    all projections of a block together

What is no projection of a block (`study.beside`) can be a unit as well, whatever the granularity.

"Matmul" and "layer" are the granularities of Scaling Laws for Mixed Quantization,
https://arxiv.org/abs/2410.06722, v1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pennyweight.core import UnknownNameError
from pennyweight.pipeline.survey import Site, Survey
from pennyweight.study.beside import beside_of

Granularity = Literal["matmul", "fused", "layer"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)
BLOCK = re.compile(r"(.*?\.\d+\.)(.*)")
EXPERT = re.compile(r"\.\d+\.")  # experts carry a number inside a block's names


@dataclass(frozen=True)
class Unit:
    """Tensors that get one scheme together."""

    name: str  # of a projection or block in the checkpoint, or several joined by +
    kind: str  # the name without what tells its blocks (and experts) apart
    tensors: tuple[str, ...]


def units(survey: Survey, granularity: str, also: Sequence[str] = ()) -> tuple[Unit, ...]:
    """The units of a model, in the order in which they run; each site is in exactly one.

    also: kinds of `study.beside`, whose units come behind these. Raises UnknownNameError for a
    granularity or kind that there is not, UnsupportedError for a kind that the model has no unit
    of.
    """
    if granularity not in GRANULARITIES:
        raise UnknownNameError(
            f"unknown granularity {granularity!r:.40}; known: {', '.join(GRANULARITIES)}"
        )
    together = {"matmul": lambda site: site.local, "layer": lambda _: ""}
    key = together.get(granularity) or _fused(survey)
    parties: dict[tuple[int, str], list[Site]] = {}
    for site in survey.sites:
        parties.setdefault((site.block, key(site)), []).append(site)
    make = _layer if granularity == "layer" else _unit
    linears = tuple(make(sites) for sites in parties.values())
    return linears + tuple(
        Unit(each.name.removesuffix(".weight"), each.kind, (each.name,))
        for each in beside_of(survey, also)
    )


def _fused(survey: Survey) -> Callable[[Site], str]:
    """What identifies, within its block, the product that a site is a part of."""
    first: dict[str, str] = {}
    for sites in survey.fused():
        first |= dict.fromkeys((site.tensor for site in sites), sites[0].local)
    return lambda site: EXPERT.sub(".*.", first.get(site.tensor, site.local))


def _unit(sites: list[Site]) -> Unit:
    """Named after the first, and the last parts of the names of the others."""
    block, names = _cut(sites[0])[0], [_cut(site)[1] for site in sites]
    if len(sites) > 1:
        names = list(dict.fromkeys(EXPERT.sub(".*.", name) for name in names))
    parent = names[0].rpartition(".")[0]
    own = f"{parent}." if parent else ""
    name = own + "+".join(name.removeprefix(own) for name in names)
    return Unit(block + name, EXPERT.sub(".*.", name), tuple(site.tensor for site in sites))


def _layer(sites: list[Site]) -> Unit:
    tensors = tuple(site.tensor for site in sites)
    return Unit(_cut(sites[0])[0].removesuffix("."), "layer", tensors)


def _cut(site: Site) -> tuple[str, str]:
    """The name in the checkpoint as (block, rest): the first number in it is the block's."""
    found = BLOCK.match(site.name)
    return (found[1], found[2]) if found else ("", site.name)
