"""The names of schemes. A name says all there is to say, and each scheme has one name.

    W<bits>A16[_g<n>|_tensor][_asym|_fzp]    weight only, integers of 2 to 8 bits
    W<bits>A<bits>[_g<n>|_tensor][_asym|_fzp][_static]  integer weight and input, W8A8 above all
    W<bits>A16_<float>[_g<n>|_block|_tensor] weight only, small floats
    W<bits>A8_<float>[_g<n>|_block|_tensor][_static]    the same, input in fp8 (e4m3)
    MX<element>[A16][_g<n>|_row|_tensor][_<rule>]       microscaling: scales are powers of two
    NVFP4[A16]                               fp4 in groups of 16, scales in fp8
    W4A8_fp4_g<n>_pow2                       fp4, scales powers of two, input in fp8
    W4A<8|16>_fp4_g<n>_shift[_down]          the same times one float of the row
    W4A8_dgq_g<n>[_static|_staticmin]        dual-grained: uint4 groups inside int8 rows
    W<bits>A16_g<n>_bilevel                  scales and zero points in 3 bits, 16 groups together
    W<bits>A16_g<n>_dq                       scales in 8 bits, the groups of a row together
    W4A16_nf4[_g<n>]                         the 16 values of NF4
    W<2-6>A16_table                         2^bits values of each row's own
    W<2-4>A16_higgs[1]_g<n>                  rotated groups, in pairs (1: singly) on Gaussian grids
    W16A16                                   leaves the linear as it is

Groups: `_g128` is 128 weights of a row; `_block` 128 x 128 weights; `_row` the row, `_tensor` the
tensor. Without one it is the row, and 32 for microscaling. `_asym` stores a zero point in as many
bits as a code, `_fzp` a zero point in the dtype of the scale.

A16 leaves the activation alone. A8 (and of integers any A2 to A8) rounds it with one scale per
token, found as it passes (of 128 channels each beside `_block` weights), or with `_static` one
scale per tensor, fixed at calibration. MX and NVFP4 without A16 round the input as the weight,
dynamically per token and group; the one float32 scale per tensor of NVFP4 is fixed at calibration.

<float>: fp4 (e2m1), fp6 (e2m3), fp8 (e4m3) or another e<x>m<y> of that many bits. <element>:
FP4, FP6, FP8, another E<x>M<y>, or INT2 to INT8. <rule>: even, rceil or msfp instead of OCP's own
exponent (`formats.ranges`).
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import replace

import torch

from pennyweight.core import ActivationFormat, Format, Grid, Scheme, UnknownNameError
from pennyweight.formats import dual_grained, gauss, shifted, table, two_level
from pennyweight.formats.base import GRIDS

GRAMMAR = (  # what a name looks like, what it means, where it is described
    ("W<2-8>A16[_g<n>|_tensor][_asym|_fzp]", "integers, weight only", "-"),
    ("W<2-8>A<2-8>[_g<n>|_tensor][_asym|_fzp][_static]", "integer weight and input", "-"),
    ("W<3-8>A16_<float>[_g<n>|_block|_tensor]", "small floats: fp4, fp6, fp8, e<x>m<y>",
     "Micikevicius et al. 2022, arXiv:2209.05433; OCP MX 1.0"),
    ("W<3-8>A8_<float>[..][_static]", "small floats, input in fp8", "arXiv:2209.05433"),
    ("MX<element>[A16][_g<n>|_row|_tensor][_<rule>]", "blocks that share a power of two",
     "OCP Microscaling Formats 1.0; Rouhani et al. 2023, arXiv:2310.10537"),
    ("NVFP4[A16]", "fp4 in groups of 16, scales in fp8 and one float32", "NVIDIA Blackwell"),
    ("W4A8_fp4_g<n>_pow2", "fp4 with scales that are powers of two", "arXiv:2307.09782"),
    ("W4A<8|16>_fp4_g<n>_shift[_down]", "powers of two times a float of the row",
     "Wu et al. 2023, arXiv:2307.09782"),
    ("W4A8_fp4_g<n>_pow2, W4A<8|16>_fp4_g<n>_shift[_down]", "fp4 that becomes fp8 by shifts",
     "Wu et al. 2023 (ZeroQuant-FP), arXiv:2307.09782"),
    ("W4A8_dgq_g<n>[_static|_staticmin]", "uint4 groups inside int8 rows",
     "Zhang et al. 2023, arXiv:2310.04836; Lin et al. 2024, arXiv:2405.04532"),
    ("W<bits>A16_g<n>_bilevel", "scales and zero points in 3 bits", "arXiv:2306.03078"),
    ("W<bits>A16_g<n>_dq", "scales in 8 bits (double quantization)", "arXiv:2305.14314"),
    ("W4A16_nf4[_g<n>]", "quantiles of the normal distribution", "arXiv:2305.14314"),
    ("W<2-6>A16_table", "values of each row's own", "Kim et al. 2023, arXiv:2306.07629"),
    ("W<2-4>A16_higgs[1]_g<n>", "rotated groups on Gaussian grids", "arXiv:2411.17525"),
    ("W16A16", "left as it is", "-"),
)  # fmt: skip

UNTOUCHED = "W16A16"
FLOATS = {"fp4": "e2m1", "fp6": "e2m3", "fp8": "e4m3"}  # short names, which replace the long ones
BLOCK, MX_GROUP, NV_GROUP = 128, 32, 16
SIZE = r"_g[1-9]\d{0,5}"
FLOAT = r"(?P<float>fp[468]|e[1-6]m[1-6])"
E8M0 = torch.float8_e8m0fnu

Match = re.Match[str]


def parse_scheme(name: str, scale_dtype: torch.dtype = torch.float16) -> Scheme:
    """The scheme of that name; weight scales are stored in `scale_dtype`.

    Engines multiply in the dtype of the model, so the caller passes the checkpoint's dtype: a scale
    in any other would be rounded once more on load. 8-bit floats have float32 scales whatever it
    is, because absmax / 448 of ordinary weights is below the normal numbers of float16. Raises
    UnknownNameError with the nearest name.
    """
    for pattern, build in FAMILIES:
        match = pattern.fullmatch(name)
        scheme = build(match, scale_dtype) if match else None
        if scheme is not None:
            return scheme
    spelled = name
    for short, long in FLOATS.items():
        spelled = spelled.replace(long, short)
    close = difflib.get_close_matches(spelled, COMMON, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else "expected e.g. 'W4A16_g128' or 'W8A8'"
    raise UnknownNameError(
        f"unknown scheme {name!r}; {hint} (W<2-8>A16[_g<size>][_asym], W8A8[_static], W4A8_g128, "
        "W8A8_fp8, MXFP4A16, NVFP4A16, W16A16; docs/formats.md has the grammar)"
    )


def _integer(match: Match, dtype: torch.dtype) -> Scheme | None:
    weight = _grouped(GRIDS[f"int{match['bits']}"], match, dtype)
    zero_point = {"_asym": torch.uint8, "_fzp": dtype, None: None}[match["zero"]]
    activation = None
    if match["inputs"] != "16":
        activation = _activation(f"int{match['inputs']}", match, dtype)
    elif match["static"]:
        return None
    weight = replace(weight, zero_point=zero_point)
    return Scheme(name=match[0], weight=weight, activation=activation)


def _float(match: Match, dtype: torch.dtype) -> Scheme | None:
    grid = _minifloat(match["float"], match["bits"])
    if grid is None:
        return None
    if grid.bits == 8:
        dtype = torch.float32
    weight = _grouped(grid, match, dtype)
    activation = _activation("e4m3", match, torch.float32) if match["inputs"] == "8" else None
    if match["static"] and activation is None:
        return None
    return Scheme(name=match[0], weight=weight, activation=activation)


def _microscaling(match: Match, _: torch.dtype) -> Scheme | None:
    element = match["element"].lower()
    grid = GRIDS[element] if element[0] == "i" else _minifloat(element, None)
    if grid is None or match["size"] == f"_g{MX_GROUP}":  # the default, which is not spelled out
        return None
    weight = _grouped(grid, match, E8M0)
    if not match["size"]:
        weight = replace(weight, group_size=MX_GROUP)
    weight = replace(weight, range=match["rule"] or "ocp")
    activation = None
    if not match["a16"]:  # a token is a row of the input: never a scale for several
        activation = ActivationFormat(format=replace(weight, group_rows=1))
    return Scheme(name=match[0], weight=weight, activation=activation)


def _nvfp4(match: Match, _: torch.dtype) -> Scheme:
    # A power of two for the tensor: every reader multiplies by it exactly, and no scale loses more
    # than one of the 18 binades of e4m3 to it.
    scales = Format(grid=GRIDS["e4m3"], group_rows=None, scale=torch.float32, range="rceil")
    weight = Format(grid=GRIDS["e2m1"], group_size=NV_GROUP, scale=scales)
    activation = None if match["a16"] else ActivationFormat(format=weight, dynamic=False)
    return Scheme(name=match[0], weight=weight, activation=activation)


def _minifloat(name: str, bits: str | None) -> Grid | None:
    """The grid of a spelling, or None if it is not the one spelling of a grid of that width."""
    long = FLOATS.get(name, name)
    if name in FLOATS.values() or long not in GRIDS:
        return None
    return GRIDS[long] if bits in (None, str(GRIDS[long].bits)) else None


def _grouped(grid: Grid, match: Match, dtype: torch.dtype) -> Format:
    """One scale for each row, or for what the name says instead."""
    size = match["size"] or "_row"
    if size.startswith("_g"):
        return Format(grid=grid, group_size=int(size.removeprefix("_g")), scale=dtype)
    if size == "_block":
        return Format(grid=grid, group_size=BLOCK, group_rows=BLOCK, scale=dtype)
    return Format(grid=grid, group_rows=None if size == "_tensor" else 1, scale=dtype)


def _activation(grid: str, match: Match, dtype: torch.dtype) -> ActivationFormat:
    if match["static"]:
        format = Format(grid=GRIDS[grid], group_rows=None, scale=dtype)
        return ActivationFormat(format=format, dynamic=False)
    group = BLOCK if match["size"] == "_block" else None
    return ActivationFormat(format=Format(grid=GRIDS[grid], group_size=group, scale=torch.float32))


FAMILIES: tuple[tuple[re.Pattern[str], Callable[[Match, torch.dtype], Scheme | None]], ...] = (
    (
        re.compile(
            rf"W(?P<bits>[2-8])A(?P<inputs>[2-8]|16)(?P<size>{SIZE}|_tensor)?"
            r"(?P<zero>_asym|_fzp)?(?P<static>_static)?"
        ),
        _integer,
    ),
    (
        re.compile(
            rf"W(?P<bits>[3-8])A(?P<inputs>8|16)_{FLOAT}"
            rf"(?P<size>{SIZE}|_block|_tensor)?(?P<static>_static)?"
        ),
        _float,
    ),
    (
        re.compile(
            r"MX(?P<element>FP[468]|E[1-6]M[1-6]|INT[2-8])(?P<a16>A16)?"
            rf"(?P<size>{SIZE}|_row|_tensor)?(?:_(?P<rule>even|rceil|msfp))?"
        ),
        _microscaling,
    ),
    (re.compile(r"NVFP4(?P<a16>A16)?"), _nvfp4),
    (shifted.NAME, shifted.scheme),
    (dual_grained.NAME, dual_grained.scheme),
    (two_level.NAME, two_level.scheme),
    (table.NAME, table.scheme),
    (gauss.NAME, gauss.scheme),
)

COMMON = (
    *(f"W{bits}A16{group}{sym}" for bits in range(2, 9) for group in ("", "_g32", "_g64", "_g128")
      for sym in ("", "_asym")),
    *(f"W4A16_g{group}_fzp" for group in (32, 64, 128)),
    "W8A8", "W8A8_static", "W8A8_tensor", "W8A8_tensor_static",
    "W4A8", "W4A8_g128", "W4A8_g128_asym", "W4A8_g128_static", "W6A6", "W4A4", "W4A4_g128",
    *(f"W8A8_fp8{size}{static}" for size in ("", "_tensor") for static in ("", "_static")),
    "W8A8_fp8_block", "W8A16_fp8", "W8A16_fp8_block", "W8A16_e5m2", "W8A16_e3m4",
    "W6A16_fp6", "W6A16_e3m2", "W4A16_fp4", "W4A16_fp4_g128", "W4A8_fp4_g128",
    *(f"MX{kind}{a16}" for kind in ("FP4", "FP6", "E3M2", "FP8", "E5M2", "INT4", "INT8")
      for a16 in ("", "A16")),
    "NVFP4", "NVFP4A16",
    "W4A8_fp4_g128_pow2", "W4A8_fp4_g128_shift", "W4A16_fp4_g128_shift",
    *(f"W4A8_dgq_g{size}" for size in (64, 128)), "W4A8_dgq_g128_static", "W4A8_dgq_g128_staticmin",
    "W3A16_g16_bilevel", "W4A16_g16_bilevel", "W3A16_g64_dq", "W4A16_g64_dq",
    "W4A16_nf4_g64", *(f"W{bits}A16_table" for bits in (2, 3, 4)),
    *(f"W{bits}A16_higgs{dim}_g{size}" for bits in (2, 3, 4) for dim in ("", 1)
      for size in (128, 256)),
    UNTOUCHED,
)  # fmt: skip
