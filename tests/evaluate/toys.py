"""Documents and models small enough to compute by hand."""

import torch

from pennyweight.model.tokens import Tokens

BOS = 0


def tokens(*ids: int, name: str = "d") -> Tokens:
    """A document of these ids; one that begins with 0 has a BOS; every other token is two bytes."""
    has_bos = ids[:1] == (BOS,)
    byte_counts = torch.full((len(ids),), 2.0, dtype=torch.float64)
    if has_bos:
        byte_counts[0] = 0
    return Tokens(
        name=name,
        ids=torch.tensor(ids, dtype=torch.int64),
        has_bos=has_bos,
        byte_counts=byte_counts,
    )


def bigram(probabilities):
    """A model that looks one token back: row i is the distribution after token i."""
    logits = torch.tensor(probabilities).log()
    return lambda ids: logits[ids]


def mixing(vocab: int = 7, seed: int = 0):
    """A model whose logits depend on the whole context and its order."""
    table = torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(seed))

    def model(ids):
        age = torch.arange(ids.shape[1])
        decay = torch.tril(0.7 ** (age[:, None] - age).clamp(min=0).float())
        return decay @ table[ids]

    return model
