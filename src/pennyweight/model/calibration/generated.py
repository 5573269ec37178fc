"""Text that the model writes itself: as near as can be to what it will see when it serves.

Liu et al. 2023, "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models",
https://arxiv.org/abs/2305.17888, section 3.1 (there the first token is random and the next few
are greedy; here every token is sampled at temperature 1, after BOS or a random first token).

The whole model is in memory for it, in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from pennyweight.core import DataError, NumericalError
from pennyweight.model.calibration.base import Request, calibration, seeded
from pennyweight.model.calibration.random_tokens import ordinary_ids
from pennyweight.model.load import load_model
from pennyweight.model.textfiles import TokenDocument
from pennyweight.model.workers import start_workers

ROWS = 8  # samples written side by side; a constant, since sums depend on it (rule 7)


class Generated:
    about = "text that the model itself writes, sampled at temperature 1"
    source = "after Liu et al. 2023, arXiv:2305.17888"
    generated = True
    gives_ids = True

    def __call__(self, argument: str, request: Request | None) -> list[TokenDocument]:
        assert request is not None
        if argument:
            raise DataError(f"self:{argument}: self takes no argument")
        if request.model is None:
            raise DataError("self: there is no model here to write the text; name another source")
        model = load_model(request.model, trust_remote_code=request.trust_remote_code)
        starts = range(0, request.samples, ROWS)
        with start_workers() as workers:
            parts = workers.map(lambda start: _write(model, start, request), starts)
        rows = torch.cat(parts).tolist()
        return [TokenDocument(name=f"self#{n}", ids=tuple(row)) for n, row in enumerate(rows, 1)]


def _write(model: Any, start: int, request: Request) -> Int64[Tensor, "rows tokens"]:
    """Rows start .. start + ROWS - 1; after an end of text the next begins, as in packed data."""
    numbers = range(start, min(start + ROWS, request.samples))
    generators = [seeded(request.seed, f"self {number}") for number in numbers]
    tokenizer: Any = request.tokenizer  # its ids are typed as whatever a tokenizer can return
    bos = tokenizer.bos_token_id if tokenizer else None
    eos = tokenizer.eos_token_id if tokenizer else None
    allowed = torch.tensor(ordinary_ids(request))
    first = [_draw(torch.ones(len(allowed)), g) for g in generators]
    ids = allowed[first] if bos is None else torch.full((len(numbers),), bos)
    rows, cache = [ids], None
    for _ in range(request.tokens - 1):
        out = model(input_ids=ids[:, None], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        chances = out.logits[:, -1].float().softmax(-1)
        if not bool(chances.isfinite().all()):
            raise NumericalError("self: the model's logits hold NaN or Inf while it writes")
        drawn = torch.tensor([_draw(row, g) for row, g in zip(chances, generators, strict=True)])
        ids = drawn if bos is None or eos is None else drawn.where(ids != eos, bos)
        rows.append(ids)
    return torch.stack(rows, 1)


def _draw(chances: Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(chances, 1, generator=generator))


calibration("self")(Generated())
