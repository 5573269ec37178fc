"""Which of the schemes that a rule names a tensor gets: the one that its weight loses least in.

MoFQ, Zhang et al. 2023, https://arxiv.org/abs/2305.12356, section 4: of an integer and a float
format of the same bits, each layer takes the one with the lower squared error of its weight. Here
it may be any schemes, and the least error speaks for the widest of them, so they should cost the
same. Engines run some linears as one matrix product (q,k,v; gate,up; the experts of a block), and
these are given one scheme, by the sum of their errors. What a layer's input loses is not looked at,
which is what the paper does for 8 bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pennyweight.core import Format
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.pipeline.recipe import Rule
from pennyweight.pipeline.survey import Site, Survey


def choose_schemes(
    wanted: Sequence[tuple[Site, Rule]], survey: Survey, dtype: torch.dtype
) -> dict[str, str]:
    """Tensor -> name of its scheme. Reads the weights of those that have a choice, one at a time.

    dtype: of the scales. Of equal errors the scheme that is named first wins.
    """
    names, chosen = _fused_names(survey), {}
    parties: dict[tuple, list[tuple[Site, Rule]]] = {}
    for site, rule in wanted:
        party = (site.block, names.get(site.tensor, site.local), rule.schemes)
        parties.setdefault(party, []).append((site, rule))
    for (_, _, schemes), members in parties.items():
        sites = [site for site, _ in members]
        winner = schemes[0] if len(schemes) == 1 else _least(sites, schemes, survey, dtype)
        chosen |= dict.fromkeys((site.tensor for site in sites), winner)
    return chosen


def _least(
    sites: Iterable[Site], schemes: Sequence[str], survey: Survey, dtype: torch.dtype
) -> str:
    losses = dict.fromkeys(schemes, 0.0)
    for site in sites:
        weight = survey.weight(site)
        for name in losses:
            losses[name] += weight_error(weight, parse_scheme(name, dtype).weight)
    return min(losses, key=lambda name: losses[name])


def weight_error(weight: Tensor, format: Format) -> float:
    """Sum of the squared errors of plain rounding."""
    error = round_to_nearest(weight, format).dequantize() - weight
    # In numpy: torch cuts a sum into parts by the number of threads, and so changes its last bits.
    return float(error.double().square_().numpy().sum())


def _fused_names(survey: Survey) -> dict[str, str]:
    """Tensor -> a name that it shares with what it is fused with, in its block."""
    found = {}
    for sites in survey.fused():
        found |= dict.fromkeys((site.tensor for site in sites), sites[0].local)
    experts = {site.tensor: re.split(r"\.\d+\.", site.local) for site in survey.sites}
    return found | {tensor: parts[0] for tensor, parts in experts.items() if len(parts) > 1}
