"""From logits to numbers per token. All sums and logarithms are float64, whatever the model is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from pennyweight.core.errors import DataError
from pennyweight.model.prompt import Prompt

LogitsFunction = Callable[[Tensor], Tensor]
"""input_ids [1, tokens] -> logits [1, tokens, vocab]."""

# 8 MiB of float64. The rows of a chunk do not meet, so its size cannot change a result. Results are
# written into one tensor: one small tensor a chunk pins the heap's top, which then grew by 1 GB.
CHUNK_ELEMENTS = 1 << 20


def last_logits(
    model: nn.Module | LogitsFunction, ids: Int64[Tensor, "1 tokens"], keep: int
) -> Float[Tensor, "keep vocab"]:
    """The logits at the last `keep` positions, on the model's device and in its type.

    One window at a time: batches of padded windows were slower on a CPU (3.0 s against 2.2 s for
    64 stories of a 260 thousand parameter model) and change the last bits of the results.
    """
    if not isinstance(model, nn.Module):
        return model(ids)[0, -keep:]
    ids = ids.to(next(model.parameters()).device)
    options: dict[str, object] = {"use_cache": False}
    # Else the head runs on tokens that are only looked back at: 300 MB for a vocabulary of 150k.
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = keep
    return model(input_ids=ids, **options).logits[0, -keep:]


def prompt_logits(
    model: nn.Module, prompt: Prompt, positions: Int64[Tensor, " positions"]
) -> Float[Tensor, "positions vocab"]:
    """The logits at some positions of a text with images."""
    parameter = next(model.parameters())
    arguments = prompt.arguments(parameter.dtype)
    arguments = {name: value.to(parameter.device) for name, value in arguments.items()}
    return model(**arguments, use_cache=False).logits[0, positions.to(parameter.device)]


def token_nll(
    logits: Float[Tensor, "tokens vocab"], targets: Int64[Tensor, " tokens"]
) -> Float64[Tensor, " tokens"]:
    """Negative log likelihood of each target in nats."""
    nll = logits.new_empty(len(targets), dtype=torch.float64)
    for rows in _chunks(logits):
        each, target = logits[rows].double(), targets[rows, None]
        nll[rows] = each.logsumexp(-1) - each.gather(-1, target)[:, 0]
    return nll


def token_divergence(
    reference: Float[Tensor, "tokens reference_vocab"], logits: Float[Tensor, "tokens vocab"]
) -> tuple[Float64[Tensor, " tokens"], Float64[Tensor, " tokens"]]:
    """KL(reference || model) in nats, and 1.0 where both put the same token first."""
    if reference.shape[-1] != logits.shape[-1]:
        raise DataError(
            f"vocabulary sizes differ: model {logits.shape[-1]}, reference {reference.shape[-1]}; "
            "models are compared logit by logit, so both need the same tokenizer"
        )
    divergence = logits.new_empty(len(logits), dtype=torch.float64)
    for rows in _chunks(logits):
        log_p = reference[rows].double().log_softmax(-1)
        difference = log_p - logits[rows].double().log_softmax(-1)
        # p = 0 adds nothing, also where q = 0 too: models mask unused tokens with -inf.
        difference.masked_fill_(log_p == -torch.inf, 0)
        divergence[rows] = (log_p.exp_() * difference).sum(-1)
    return divergence, (reference.argmax(-1) == logits.argmax(-1)).double()


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Slices of a few rows each, to be worked on in float64."""
    rows = max(1, CHUNK_ELEMENTS // logits.shape[-1])
    for start in range(0, len(logits), rows):
        yield slice(start, start + rows)
