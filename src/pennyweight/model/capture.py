"""What each block is called with: run the model once with every block replaced by a recorder.

The recorder hands its hidden state on unchanged, so one cheap pass through embeddings and masks
shows the arguments of all blocks, whatever the architecture passes (positions, sliding or full
masks, ...).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pennyweight.core import UnsupportedError
from pennyweight.model.prompt import Prompt, Rows, prompts
from pennyweight.model.skeleton import Skeleton

SHAPE_TOKENS = 16


@dataclass
class Sample:
    """One calibration sequence on its way through the blocks."""

    hidden: Tensor  # [1, tokens, hidden], the input of the next block
    calls: list[tuple[tuple, dict[str, Any]]]  # of each block: its other arguments

    def run(self, index: int, block: nn.Module) -> Tensor:
        """The output of block `index`."""
        args, kwargs = self.calls[index]
        out = block(self.hidden, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out


class _Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.call: tuple[Tensor, tuple, dict[str, Any]] | None = None
        self.in_tuple = False  # some blocks return a tensor, some a tuple that begins with it
        self.version = 0  # of the hidden state, which writing into it would raise

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        self.call = (hidden, args, kwargs)
        self.version = 0 if hidden.is_inference() else hidden._version
        return (hidden,) if self.in_tuple else hidden


def capture(skeleton: Skeleton, rows: Rows, dtype: torch.dtype) -> list[Sample]:
    """A Sample per row. Reads the embeddings (and encoders of images) from disk and forgets them
    again."""
    weights = {
        name: skeleton.read(source).to(dtype) for name, source in skeleton.outside_sources().items()
        if not _is_head(skeleton, name)
    }  # fmt: skip
    return _capture(skeleton, prompts(rows), weights, dtype)


def capture_shapes(skeleton: Skeleton) -> Sample:
    """A Sample of the right shapes and no meaning: nothing is read, no page of memory is
    touched."""
    weights = {
        name: torch.zeros(parameter.shape)  # calloc: pages appear only where they are read
        for name, parameter in skeleton.model.named_parameters()
        if not name.startswith(f"{skeleton.blocks_path}.") and not _is_head(skeleton, name)
    }
    tokens = min(SHAPE_TOKENS, max_tokens(skeleton) or SHAPE_TOKENS)
    nothing = Prompt(ids=torch.zeros(tokens, dtype=torch.int64))
    return _capture(skeleton, [nothing], weights, torch.float32)[0]


def max_tokens(skeleton: Skeleton) -> int | None:
    """The longest sequence the model has positions for, where its config says."""
    return getattr(skeleton.model.config.get_text_config(), "max_position_embeddings", None)


def _capture(
    skeleton: Skeleton, rows: list[Prompt], weights: dict[str, Tensor], dtype: torch.dtype
) -> list[Sample]:
    base, samples = skeleton.model.base_model, []
    with _weights(skeleton.model, weights), _recorders(skeleton) as recorders, torch.no_grad():
        for row in rows:
            calls = _walk(base, row.arguments(dtype), recorders)
            if calls is None:
                raise UnsupportedError(
                    f"{skeleton.blocks_path}: not every block ran; is this a decoder that reads "
                    "text?"
                )
            _require_handed_on(skeleton, recorders, bool(row.images))
            samples.append(Sample(calls[0][0], [call[1:] for call in calls]))
    return samples


def _require_handed_on(skeleton: Skeleton, recorders: list[_Recorder], images: bool) -> None:
    """The stream takes what leaves a block for what enters the next."""
    first = recorders[0]
    for index, recorder in enumerate(recorders):
        assert recorder.call is not None and first.call is not None
        state = recorder.call[0]
        if recorder.version != first.version or not (
            state is first.call[0] or torch.equal(state, first.call[0])
        ):
            hint = "; calibrate it on text alone" if images else ""
            raise UnsupportedError(
                f"{skeleton.block_prefix(index)[:-1]}: {type(skeleton.model).__name__} changes the "
                f"hidden state between its blocks, which this version cannot follow{hint}"
            )


def _walk(
    base: nn.Module, arguments: dict[str, Tensor], recorders: list[_Recorder]
) -> list[tuple[Tensor, tuple, dict[str, Any]]] | None:
    """What every block is called with; None if not all were, or not with the same hidden state.

    Whether the model wants a tuple from its blocks shows when it is given one: with the wrong kind
    it fails, or takes a part of the tensor for the whole.
    """
    failure: Exception | None = None
    for in_tuple in (recorders[0].in_tuple, not recorders[0].in_tuple):
        for recorder in recorders:
            recorder.call, recorder.in_tuple = None, in_tuple
        try:
            base(**arguments, use_cache=False)
        except (RuntimeError, TypeError, AttributeError, ValueError, IndexError) as error:
            failure = failure or error  # the second way may fail for being the wrong one
            continue
        calls = [recorder.call for recorder in recorders if recorder.call is not None]
        states = [call[0] for call in calls]
        if len(states) == len(recorders) and all(
            isinstance(state, Tensor) and state.shape == states[0].shape for state in states
        ):
            return calls
    if failure is not None:
        raise failure
    return None


def _is_head(skeleton: Skeleton, name: str) -> bool:
    """Parameters that the base model does not use while it walks the blocks."""
    base = skeleton.model.base_model_prefix
    return not name.startswith(f"{base}.") and skeleton.model.base_model is not skeleton.model


@contextmanager
def _weights(model: nn.Module, weights: dict[str, Tensor]):
    """Give the named parameters values for a while; they are meta again afterwards."""
    set_parameters(model, weights)
    try:
        yield
    finally:
        set_parameters(model, {name: value.to("meta") for name, value in weights.items()})


@contextmanager
def _recorders(skeleton: Skeleton):
    blocks = skeleton.blocks
    originals, recorders = list(blocks), [_Recorder() for _ in blocks]
    for index, recorder in enumerate(recorders):
        blocks[index] = recorder
    try:
        yield recorders
    finally:
        for index, original in enumerate(originals):
            blocks[index] = original


def set_parameters(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Put tensors in the place of parameters or buffers, without copying them."""
    for name, value in values.items():
        parent, _, leaf = name.rpartition(".")
        owner = module.get_submodule(parent)
        if leaf in owner._buffers:
            owner._buffers[leaf] = value
        else:
            setattr(owner, leaf, nn.Parameter(value, requires_grad=False))
