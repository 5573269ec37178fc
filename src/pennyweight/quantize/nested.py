"""A quantizer inside another, named by its options."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from pennyweight.core import RecipeError
from pennyweight.core.fields import typed
from pennyweight.quantize.base import QUANTIZERS, Finishes, Quantizer, Selects


def nested(name: str, options: Mapping[str, Any]) -> Quantizer:
    """The quantizer of that name with these options.

    Raises UnknownNameError, or RecipeError for an option it does not have, or if it looks at whole
    tensors itself, which only the outermost quantizer can.
    """
    cls = QUANTIZERS[name]
    known = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    for key in options:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise RecipeError(f"{name}: unknown key {key!r}; {hint}")
    made = typed(cls, options, f"{name}.")
    if isinstance(made, Selects | Finishes):
        raise RecipeError(f"{name} looks at whole tensors and cannot be a part of another method")
    return made
