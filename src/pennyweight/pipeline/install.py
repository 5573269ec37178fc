"""Put quantized weights in the place of those of a block."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from pennyweight.core import Scheme
from pennyweight.model.linear import QuantizedLinear
from pennyweight.model.stream import Block
from pennyweight.pipeline.survey import Survey
from pennyweight.pipeline.workdir import WorkDir


def install(
    block: Block, local: str, weight: Tensor, scheme: Scheme, input_scale: Tensor | None
) -> None:
    """From here on the block computes with the quantized weight (and rounded activation)."""
    linear = block.module.get_submodule(local)
    assert isinstance(linear, nn.Linear)
    if linear.weight.is_meta:
        return  # nothing is observed in this run, or not in this process: it was never loaded
    linear.weight = nn.Parameter(weight.to(block.dtype), requires_grad=False)
    if scheme.activation is not None:
        rounding = QuantizedLinear(linear.weight, linear.bias, scheme.activation, input_scale)
        block.replace(local, rounding)


def restore(block: Block, work: WorkDir, survey: Survey, but: Collection[str] = ()) -> None:
    """Put what is in the file of a finished block back, so that samples can pass.

    but: tensors that are there already.
    """
    plan, changed = work.plan, work.changed(block.index)
    if changed:
        block.put_stored({name: work.read_changed(block.index, name) for name in changed})
    for tensor in work.facts(block.index):
        if tensor not in but:
            task, local = plan.by_tensor[tensor], survey.by_tensor[tensor].local
            quantized, input_scale = work.load(block.index, tensor, task)
            install(block, local, quantized.dequantize(), plan.scheme(task), input_scale)
