"""The schemes that a plan chooses from unless it is told which."""

from __future__ import annotations

from pennyweight.core import FormatError
from pennyweight.formats.schemes import UNTOUCHED, parse_scheme
from pennyweight.pipeline.survey import Site, Survey

SERVED = ("W4A16_g128", "W4A16_g32", "W8A16_g128", UNTOUCHED)
ROWS = ("W4A16", "W8A16")  # where no group divides the rows of some linear
NARROW = ("W2A16_g32_asym", "W3A16_g64_asym", "W3A16_g32_asym")  # no kernels in vLLM


def offered(seen: Survey, *, any_engine: bool = False) -> tuple[str, ...]:
    """Those of the usual schemes that some linear can take, enough for every linear."""
    wanted = (*NARROW, *SERVED) if any_engine else SERVED
    fitting = [
        name
        for name in wanted
        if name == UNTOUCHED or any(takes(site, name) for site in seen.sites)
    ]
    grouped = [name for name in fitting if name != UNTOUCHED]
    if all(any(takes(site, name) for name in grouped) for site in seen.sites):
        return tuple(fitting)
    return (*ROWS, *fitting)


def takes(site: Site, name: str) -> bool:
    """Whether the groups of a scheme divide a linear."""
    try:
        parse_scheme(name).weight.groups(*site.shape)
    except FormatError:
        return False
    return True
