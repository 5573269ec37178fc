"""A model's answers, one sample at a time: the log likelihood of a text, and a greedy continuation.

One sample at a time, and every computation in the same order: the same model and question give the
same bits, whatever else is asked. Batches of padded samples would not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pennyweight.core.errors import DataError, NumericalError
from pennyweight.evaluate.logits import LogitsFunction, last_logits, token_nll
from pennyweight.model.tokens import BosRule, Tokenizer


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Of a continuation, given its context."""

    nats: float  # log likelihood, at most 0
    greedy: bool  # every token of it is the model's first choice
    cut: int  # tokens of the context that did not fit and were left out, from its beginning


@torch.inference_mode()
def likelihood(
    model: nn.Module | LogitsFunction,
    context: Sequence[int],
    continuation: Sequence[int],
    limit: int,
) -> Likelihood:
    """`limit`: tokens the model takes. Raises DataError, NumericalError."""
    if not context or not continuation:
        raise DataError(
            f"a context of {len(context)} tokens and a continuation of {len(continuation)}; "
            "expected at least one of each"
        )
    cut = max(0, len(context) + len(continuation) - 1 - limit)
    if cut >= len(context):
        raise DataError(
            f"a continuation of {len(continuation)} tokens, but the model takes {limit}; "
            "leave the item out, or take a model with a longer context"
        )
    ids = torch.tensor([[*context[cut:], *continuation]])
    logits = last_logits(model, ids[:, :-1], len(continuation))
    targets = ids[0, -len(continuation) :].to(logits.device)
    nll = token_nll(logits, targets).sum().item()
    if not nll < float("inf"):
        raise NumericalError("the model gives logits that are not finite; are weights missing?")
    return Likelihood(nats=-nll, greedy=bool((logits.argmax(-1) == targets).all()), cut=cut)


@torch.inference_mode()
def continue_greedily(
    model: nn.Module,
    prompt: Sequence[int],
    *,
    new_tokens: int,
    stops: Collection[int] = (),
    done: Callable[[list[int]], bool] = lambda ids: False,
) -> list[int]:
    """The most likely next token, again and again (ties go to the lower id).

    Ends after `new_tokens`, before a token of `stops`, or when `done` says so of what there is.
    """
    device = next(model.parameters()).device
    given = torch.tensor([list(prompt)], device=device)
    made: list[int] = []
    cache = None
    while len(made) < new_tokens:
        found = model(input_ids=given, past_key_values=cache, use_cache=True)
        token = _first_choice(found.logits[0, -1])
        if token in stops:
            break
        made.append(token)
        if done(made):
            break
        cache = getattr(found, "past_key_values", None)
        # Models without such a cache (state spaces) read everything again: slower, and the same.
        seen = [token] if cache is not None else [*prompt, *made]
        given = torch.tensor([seen], device=device)
    return made


def leading_bos(tokenizer: Tokenizer, bos: BosRule) -> int | None:
    """The token that every question begins with; None: none. Raises DataError if there is none
    to begin with."""
    if bos == "never":
        return None
    if tokenizer.bos_token_id is None:
        if bos == "always":
            raise DataError("bos is 'always', but the tokenizer has no BOS token; use 'auto'")
        return None
    token: Any = tokenizer.bos_token_id
    return token if bos == "always" or tokenizer("a")["input_ids"][:1] == [token] else None


def _first_choice(logits: Float[Tensor, " vocab"]) -> int:
    if logits.isnan().any():
        raise NumericalError("the model gives logits that are not finite; are weights missing?")
    return int(logits.argmax())
