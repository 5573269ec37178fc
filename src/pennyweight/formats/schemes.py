"""The names of schemes: `W4A16_g128`, `W4A16_g64_asym`, `W8A8`, `W8A8_static`.

    W<bits>A16[_g<group size>][_asym]     weight only, 2 to 8 bits
    W8A8[_static]                         weight and input in int8

Without a group each output channel has one scale. A16 leaves the activation alone; A8 rounds it to
int8 with one scale per token, found as it passes, or with `_static` one scale per tensor, fixed at
calibration. W16A16 leaves the linear as it is. The name says all there is to say.
"""

import difflib
import re

import torch

from pennyweight.core import ActivationFormat, Format, Scheme, UnknownNameError
from pennyweight.formats.base import GRIDS

WEIGHT_ONLY = re.compile(r"W(?P<bits>[2-8])A16(?:_g(?P<group>[1-9]\d{0,5}))?(?P<asym>_asym)?")
UNTOUCHED = "W16A16"

COMMON = (
    *(f"W{bits}A16{group}{sym}" for bits in range(2, 9) for group in ("", "_g32", "_g64", "_g128")
      for sym in ("", "_asym")),
    "W8A8",
    "W8A8_static",
    UNTOUCHED,
)  # fmt: skip


def parse_scheme(name: str, scale_dtype: torch.dtype = torch.float16) -> Scheme:
    """The scheme of that name; weight scales are stored in `scale_dtype`.

    Engines multiply in the dtype of the model, so the caller passes the checkpoint's dtype: a scale
    in any other would be rounded once more on load. Raises UnknownNameError with the nearest name.
    """
    if name in ("W8A8", "W8A8_static"):
        weight = Format(grid=GRIDS["int8"], scale=scale_dtype)
        return Scheme(name=name, weight=weight, activation=_int8_activation(name == "W8A8"))
    match = WEIGHT_ONLY.fullmatch(name)
    if not match:
        close = difflib.get_close_matches(name, COMMON, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "expected e.g. 'W4A16_g128' or 'W8A8'"
        raise UnknownNameError(
            f"unknown scheme {name!r}; {hint} (W<2-8>A16[_g<size>][_asym], W8A8[_static], W16A16)"
        )
    weight = Format(
        grid=GRIDS[f"int{match['bits']}"],
        group_size=int(match["group"]) if match["group"] else None,
        scale=scale_dtype,
        zero_point=torch.uint8 if match["asym"] else None,
    )
    return Scheme(name=name, weight=weight)


def _int8_activation(dynamic: bool) -> ActivationFormat:
    rows = 1 if dynamic else None
    format = Format(grid=GRIDS["int8"], group_rows=rows, scale=torch.float32)
    return ActivationFormat(format=format, dynamic=dynamic)
