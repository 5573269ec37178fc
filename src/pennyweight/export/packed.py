"""Our own layout: every part as it was computed. Holds any scheme, and any correction.

A linear `X` is stored as `X.weight.codes`, `X.weight.scale`, ... (formats/storage.py,
formats/corrections.py) and, for a static scheme, `X.weight.input_scale`. config.json names the
scheme of each linear, and the dtype of the scales where the formula leaves it open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pennyweight.export.base import TARGETS, Linear, Part
from pennyweight.model.packed import METHOD, VERSION


class Packed:
    about = "every part bit for bit, in Pennyweight's own layout; holds any scheme and correction"
    serves = "pennyweight eval, pennyweight.api.load_model"
    exact = True

    def parts(self, linear: Linear) -> dict[str, Part]:
        return {
            f"weight.{name}": Part(dtype, shape, lambda name=name: linear.read(name))
            for name, (dtype, shape) in linear.stored.items()
        }

    def config(self, linears: Sequence[Linear], ignore: list[str]) -> dict[str, Any]:
        schemes: dict[str, list[str]] = {}
        for linear in linears:
            schemes.setdefault(linear.scheme.name, []).append(linear.name)
        dtype = str(linears[0].dtype).removeprefix("torch.")
        return {
            "quant_method": METHOD, "version": VERSION, "scale_dtype": dtype, "schemes": schemes,
            "shapes": {linear.name: list(linear.shape) for linear in linears},
        }  # fmt: skip


TARGETS.register("packed")(Packed())
