"""What a calibration source is, and what it is asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from pennyweight.core import Registry
from pennyweight.model.textfiles import Document, TokenDocument
from pennyweight.model.tokens import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Request:
    """How much text is wanted, and of which model."""

    tokenizer: Tokenizer | None  # None if every source holds token ids
    samples: int
    tokens: int  # of each sample
    seed: int = 0
    split_at: str | None = None  # a regular expression that cuts text into documents
    chat_template: bool = False  # whether texts become turns of a chat
    model: Path | None = None  # its directory, for sources that ask the model
    vocabulary: int | None = None  # rows of the model's embedding
    trust_remote_code: bool = False


@runtime_checkable
class Source(Protocol):
    """Text by a name: `name` or `name:argument` where files are named too."""

    @property
    def about(self) -> str: ...  # one line for `list`

    @property
    def source(self) -> str: ...  # where it is described

    @property
    def generated(self) -> bool: ...  # made to measure: not evaluated on, not cut into documents

    @property
    def gives_ids(self) -> bool: ...  # and so can do without a tokenizer

    def __call__(
        self, argument: str, request: Request | None
    ) -> list[Document] | list[TokenDocument]:
        """The documents, in their order; all that are `generated` need the request.

        Raises DataError for an argument that names nothing.
        """
        ...


CALIBRATIONS: Registry[Source] = Registry("text source")
calibration = CALIBRATIONS.register


def seeded(seed: int, name: str) -> torch.Generator:
    """A generator that depends on the seed and on what it is for, and on nothing else."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
