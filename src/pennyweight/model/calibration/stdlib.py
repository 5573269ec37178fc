"""Python's own standard library, which every installation carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pennyweight.core import DataError
from pennyweight.model.calibration.base import Request, calibration
from pennyweight.model.stdlib import stdlib_documents
from pennyweight.model.textfiles import Document


@dataclass(frozen=True)
class Stdlib:
    name: str
    split: Literal["train", "heldout"]
    about: str
    source: str = "-"
    generated: bool = False
    gives_ids: bool = False

    def __call__(self, argument: str, request: Request | None) -> list[Document]:
        if argument:
            raise DataError(f"{self.name}:{argument}: {self.name} takes no argument")
        found = stdlib_documents(self.split)
        return [Document(name=f"{self.name}:{name}", text=text) for name, text in found]


calibration("stdlib")(Stdlib("stdlib", "train", "Python's standard library, most of it"))
calibration("stdlib-heldout")(
    Stdlib("stdlib-heldout", "heldout", "the rest of it, to be evaluated on")
)
