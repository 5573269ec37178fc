"""Data from outside against the dataclass it should be, and where the two first disagree."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pennyweight.core.errors import RecipeError

# Making an adapter takes longer than a hundred uses of it.
adapter: Callable[[type], TypeAdapter[Any]] = functools.cache(TypeAdapter)


@dataclass(frozen=True)
class Fault:
    place: str  # path of the field, with dots
    message: str
    found: Any


def first_fault(error: ValidationError) -> Fault:
    """What to tell a user of an error: the first of what is wrong."""
    first = error.errors()[0]
    return Fault(".".join(map(str, first["loc"])), first["msg"], first["input"])


def typed(cls: type, data: Mapping[str, Any], where: str) -> Any:
    """The dataclass with these fields; a RecipeError begins with `where` and the field's path."""
    try:
        return adapter(cls).validate_python(dict(data))
    except ValidationError as error:
        fault = first_fault(error)
        raise RecipeError(
            f"{where}{fault.place}: {fault.message}, found {fault.found!r:.80}"
        ) from None
