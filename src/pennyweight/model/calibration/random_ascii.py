"""Nonsense on purpose: punctuation and white space, every character as likely as any other.

Paglieri et al. 2024, "Outliers and Calibration Sets have Diminishing Effect on Quantization of
Modern LLMs", https://arxiv.org/abs/2405.20835, section 3: the lower end of the axis of quality.
"""

from __future__ import annotations

import string

import torch

from pennyweight.core import DataError
from pennyweight.model.calibration.base import Request, calibration, seeded
from pennyweight.model.textfiles import Document

ALPHABET = string.punctuation + string.whitespace
# Tokenizers know few long runs of these; four characters a token is more than any was seen to take.
CHARACTERS_PER_TOKEN = 4


class RandomAscii:
    about = "uniformly random ASCII punctuation and white space"
    source = "Paglieri et al. 2024, arXiv:2405.20835"
    generated = True
    gives_ids = False

    def __call__(self, argument: str, request: Request | None) -> list[Document]:
        """One text for each sample, long enough for it."""
        assert request is not None
        if argument:
            raise DataError(f"random-ascii:{argument}: random-ascii takes no argument")
        length = CHARACTERS_PER_TOKEN * request.tokens
        return [self._text(number, length, request.seed) for number in range(request.samples)]

    def _text(self, number: int, length: int, seed: int) -> Document:
        generator = seeded(seed, f"random-ascii {number}")
        drawn = torch.randint(len(ALPHABET), (length,), generator=generator).tolist()
        text = "".join(ALPHABET[index] for index in drawn)
        return Document(name=f"random-ascii#{number + 1}", text=text)


calibration("random-ascii")(RandomAscii())
