"""Token ids drawn uniformly from the vocabulary: text without any statistics at all."""

from __future__ import annotations

import torch

from pennyweight.core import DataError
from pennyweight.model.calibration.base import Request, calibration, seeded
from pennyweight.model.textfiles import TokenDocument
from pennyweight.model.tokens import added_bos


class RandomTokens:
    about = "token ids drawn uniformly, special ones left out"
    source = "-"
    generated = True
    gives_ids = True

    def __call__(self, argument: str, request: Request | None) -> list[TokenDocument]:
        """One list for each sample; it begins with BOS if the tokenizer's texts do."""
        assert request is not None
        if argument:
            raise DataError(f"random-tokens:{argument}: random-tokens takes no argument")
        allowed = torch.tensor(ordinary_ids(request))
        bos = added_bos(request.tokenizer) if request.tokenizer else []
        documents = []
        for number in range(request.samples):
            generator = seeded(request.seed, f"random-tokens {number}")
            size = (request.tokens - len(bos),)
            drawn = allowed[torch.randint(len(allowed), size, generator=generator)].tolist()
            documents.append(TokenDocument(name=f"random-tokens#{number + 1}", ids=(*bos, *drawn)))
        return documents


def ordinary_ids(request: Request) -> list[int]:
    """The ids that stand for text: what tokenizer and model both know, without special ones."""
    sizes = [request.vocabulary, len(request.tokenizer) if request.tokenizer else None]
    known = [size for size in sizes if size is not None]
    if not known:
        raise DataError("random-tokens: needs a model or a tokenizer, to know how many ids exist")
    special = set(request.tokenizer.all_special_ids) if request.tokenizer else set()
    return [i for i in range(min(known)) if i not in special]


calibration("random-tokens")(RandomTokens())
