"""What enters the head of a model: the last block's output behind the last norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pennyweight.model.backward import tail
from pennyweight.model.capture import Sample
from pennyweight.model.prompt import Prompt
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.stream import tapped

Row = Int64[Tensor, " tokens"] | Prompt


@contextmanager
def head_inputs(
    skeleton: Skeleton, name: str, sample: Sample, dtype: torch.dtype
) -> Iterator[Callable[[tuple[Row, Sample]], Float[Tensor, "tokens in"]]]:
    """A function of a row of calibration text and its sample behind the last block, for the length
    of a `with` block.

    name: of the head. sample: shows how a block is called. Whatever the model does between its
    blocks and its head, it does here; images are left out, since the blocks have seen them.
    """
    with tail(skeleton, sample, dtype) as end:

        def run(pair: tuple[Row, Sample]) -> Tensor:
            row, passed = pair
            end.stand_in.hold(passed.hidden)
            ids = row.ids if isinstance(row, Prompt) else row
            return end.model(input_ids=ids[None], use_cache=False).logits

        with torch.no_grad(), tapped(end.model, [name], run) as tap:
            yield lambda pair: tap(pair)[name]
