"""BERTScore and STS with any encoder of sentence-transformers, which the user installs.

STS is the cosine of two texts' embeddings. BERTScore (Zhang et al. 2020, arXiv:1904.09675, section
3) matches every token of one text to the most similar of the other: the mean over the model's
tokens is precision, over the reference's recall, and their F-measure is reported, without weights
by rarity and without rescaling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core.errors import UnsupportedError
from pennyweight.evaluate.similarity import Encoder


def load_encoder(name: str) -> Encoder:
    """An encoder by directory or Hub id. Raises UnsupportedError if sentence-transformers or the
    encoder is not there."""
    try:
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UnsupportedError(
            f"encoder {name!r} needs the package sentence-transformers; install it with "
            "'pip install sentence-transformers', or leave --encoder out"
        ) from None
    try:
        model = SentenceTransformer(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UnsupportedError(f"encoder {name!r} cannot be loaded: {reason}") from None

    def encode(texts: Sequence[str], others: Sequence[str]) -> dict[str, list[float]]:
        whole = [model.encode(list(each), convert_to_tensor=True) for each in (texts, others)]
        tokens = [
            model.encode(list(each), output_value="token_embeddings") for each in (texts, others)
        ]
        sts = torch.cosine_similarity(whole[0].double(), whole[1].double())
        return {
            "sts_percent": (100 * sts).tolist(),
            "bertscore_f1_percent": [
                100 * bertscore(a, b) for a, b in zip(tokens[0], tokens[1], strict=True)
            ],
        }

    return encode


def bertscore(
    model: Float[Tensor, "tokens size"], reference: Float[Tensor, "others size"]
) -> float:
    """The F-measure of greedy matching by cosine."""
    a, b = (torch.nn.functional.normalize(each.double(), dim=-1) for each in (model, reference))
    alike = a @ b.T
    precision, recall = alike.max(1).values.mean().item(), alike.max(0).values.mean().item()
    total = precision + recall
    return 2 * precision * recall / total if total > 0 else 0.0
