"""The names of formats for what is no weight: cached keys and values, operands of attention.

    int<2-8>[_g<n>][_asym]          integers
    <float>[_g<n>]                  fp4, fp6, fp8 or another e<x>m<y> of 3 to 8 bits
    int<2-8>_static, <float>_static[min]    one scale per tensor, fixed at calibration
    mx<element>[_g<n>|_row][_<rule>]        powers of two for 32 numbers, or as it says
    nf4[_g<n>], nvfp4               as in the schemes of those names

The numbers that share a scale are consecutive in one row: of one token and one head. Without `_g`
it is the row. `_static` fixes the largest magnitude that any calibration sample had, `_staticmin`
the least of their largest (DGQ, Zhang et al. 2023, arXiv:2310.04836). Every name is the weight of
a scheme (`formats.schemes`) without its W and A, so there is one grammar and one set of formats.
"""

import difflib
import re
from collections.abc import Callable

import torch

from pennyweight.core import ActivationFormat, UnknownNameError
from pennyweight.formats.schemes import FLOAT, FLOATS, MX_GROUP, SIZE, Match, parse_scheme

OBSERVED = {"_static": "absmax", "_staticmin": "least_absmax"}
STATIC = r"(?P<static>_static(?:min)?)?"


def parse_operand(name: str, scale_dtype: torch.dtype = torch.float16) -> ActivationFormat:
    """The format of that name; what is cached has its scales in float16, as it is stored.

    8-bit floats have float32 scales and microscaling one byte, whatever is asked for. Raises
    UnknownNameError with the nearest name.
    """
    for pattern, scheme_of in FAMILIES:
        match = pattern.fullmatch(name)
        scheme = scheme_of(match) if match else None
        if match and scheme:
            static = match.groupdict().get("static")
            dynamic = static is None and name != "nvfp4"  # which has one scale for the tensor
            return ActivationFormat(
                format=_weight(name, scheme, scale_dtype),
                dynamic=dynamic,
                observed=OBSERVED.get(static or "", "absmax"),
            )
    raise _unknown(name)


def _weight(name: str, scheme: str, dtype: torch.dtype):
    try:
        return parse_scheme(scheme, dtype).weight
    except UnknownNameError:  # a second spelling (e4m3 for fp8), or no such grid
        raise _unknown(name) from None


def _unknown(name: str) -> UnknownNameError:
    spelled = name.lower()
    for short, long in FLOATS.items():
        spelled = spelled.replace(long, short)
    if spelled.startswith("mx"):
        spelled = spelled.removesuffix(f"_g{MX_GROUP}")  # which is not spelled out
    close = difflib.get_close_matches(spelled, COMMON, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else "expected e.g. 'int8' or 'int4_g32'"
    return UnknownNameError(
        f"unknown format {name!r} of keys, values or operands; {hint} (int<2-8>[_g<size>][_asym], "
        "fp8, fp8_static, mxfp4, mxint4_g16, nf4, nvfp4; docs/evaluation.md has the grammar)"
    )


def _integer(match: Match) -> str | None:
    if match["static"]:
        return None if match["size"] or match["asym"] else f"W{match['bits']}A16_tensor"
    return f"W{match['bits']}A16{match['size'] or ''}{match['asym'] or ''}"


def _float(match: Match) -> str | None:
    if match["static"] and match["size"]:
        return None
    name = match["float"]
    bits = name[2] if name in FLOATS else 1 + int(name[1]) + int(name[3])
    return f"W{bits}A16_{name}{'_tensor' if match['static'] else match['size'] or ''}"


def _microscaling(match: Match) -> str:
    return f"MX{match['element'].upper()}A16{match['rest']}"


FAMILIES: tuple[tuple[re.Pattern[str], Callable[[Match], str | None]], ...] = (
    (re.compile(rf"int(?P<bits>[2-8])(?P<size>{SIZE})?(?P<asym>_asym)?{STATIC}"), _integer),
    (re.compile(rf"{FLOAT}(?P<size>{SIZE})?{STATIC}"), _float),
    (
        re.compile(
            r"mx(?P<element>fp[468]|e[1-6]m[1-6]|int[2-8])"
            rf"(?P<rest>(?:{SIZE}|_row)?(?:_(?:even|rceil|msfp))?)"
        ),
        _microscaling,
    ),
    (re.compile(rf"nf4(?P<size>{SIZE})?"), lambda match: f"W4A16_nf4{match['size'] or ''}"),
    (re.compile(r"nvfp4"), lambda _: "NVFP4A16"),
)

COMMON = (
    *(f"int{bits}{size}{asym}" for bits in range(2, 9) for size in ("", "_g16", "_g32", "_g64")
      for asym in ("", "_asym")),
    *(f"{name}_static{least}" for name in ("int8", "fp8") for least in ("", "min")),
    "fp8", "e5m2", "fp6", "e3m2", "fp4", "fp4_g32",
    *(f"mx{kind}{size}" for kind in ("fp4", "fp6", "fp8", "int4", "int6", "int8")
      for size in ("", "_g16")),
    "nf4", "nf4_g32", "nvfp4",
)  # fmt: skip
