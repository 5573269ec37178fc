"""The text that a study measures on: read once, cut once, the same for every trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from pennyweight.core import DataError
from pennyweight.evaluate import Settings
from pennyweight.evaluate.evaluation import digest_of, limited, resolved
from pennyweight.model.load import load_tokenizer, vocabulary
from pennyweight.model.text import TokenDocument, documents
from pennyweight.model.tokens import Tokens
from pennyweight.pipeline.evaluate import check_vocabulary, fitting, tokenized


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Documents as tokens, and how they are scored."""

    data: tuple[str, ...]
    split_at: str | None
    settings: Settings  # complete: context and stride are numbers
    tokens: tuple[Tokens, ...]  # of documents with at least two
    digest: str

    @property
    def scored(self) -> int:
        """Tokens that are scored: the length of one forward pass."""
        return sum(len(document.ids) - 1 for document in self.tokens)


def read_texts(
    path: Path,
    model: PreTrainedModel,
    data: Sequence[str],
    *,
    split_at: str | None = None,
    settings: Settings | None = None,
) -> Texts:
    """The texts named by `data` as the tokens of the model in `path`.

    Raises DataError for a text or window that cannot be used, or texts without two tokens.
    """
    settings = resolved(fitting([model], settings or Settings()))
    found = [document for source in data for document in documents(source, split_at=split_at)]
    pretokenized = all(isinstance(document, TokenDocument) for document in found)
    tokenizer = None if pretokenized else load_tokenizer(path)
    tokens = limited(tokenized(found, tokenizer, settings), settings)
    tokens = tuple(document for document in tokens if len(document.ids) >= 2)
    if not tokens:
        raise DataError(f"{', '.join(data)}: no document has two tokens; expected longer texts")
    check_vocabulary(vocabulary(model), tokens)
    return Texts(
        data=tuple(data), split_at=split_at, settings=settings, tokens=tokens,
        digest=digest_of(tokens),
    )  # fmt: skip
