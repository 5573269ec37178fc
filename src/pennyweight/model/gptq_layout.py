"""GPTQ checkpoints as AutoGPTQ and GPTQModel write them and transformers and vLLM load them.

    qweight int32 [in * bits / 32, out]      codes of one output along its column, lowest bits first
    qzeros  int32 [groups, out * bits / 32]  zero points of one group along its row, likewise
    scales  float [groups, out]
    g_idx   int32 [in]                       the group of each input; out of order with act-order

2, 4 and 8 bits divide a word. 3-bit codes run on across words, 32 of them in three: that is the
same stream of bits. In the layout's first version (`checkpoint_format` "gptq") zero points are
stored less one, in the second ("gptq_v2") as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from pennyweight.core import UnsupportedError
from pennyweight.formats.bits import unpack_bits
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.words import WORD_BITS, WordCheckpoint, Words

METHOD = "gptq"
OFFSETS = {"gptq": 1, "gptq_v2": 0}
BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class GPTQLayout:
    offset: int  # what was taken off the zero points
    name: str = METHOD

    def measure(self, weight: tuple[int, ...], zeros: tuple[int, ...], out: int) -> Words | None:
        bits = zeros[1] * WORD_BITS // out
        if bits not in BITS or bits * out != zeros[1] * WORD_BITS or weight[1] != out:
            return None
        cols, rest = divmod(weight[0] * WORD_BITS, bits)
        return None if rest else Words(bits=bits, shape=(out, cols), groups=zeros[0])

    def decode(self, parts: Mapping[str, Tensor], words: Words) -> Float[Tensor, "out in"]:
        out, cols = words.shape
        codes = stream(parts["qweight"].T, words.bits, cols)
        zeros = zero_points(parts["qzeros"], words.bits, out, self.offset)
        group, scales = parts["g_idx"], parts["scales"].float()
        return (codes.float() - zeros.T.float()[:, group]) * scales.T[:, group]


def stream(words: Int32[Tensor, "rows words"], bits: int, count: int) -> UInt8[Tensor, "rows n"]:
    """The codes of each row."""
    return unpack_bits(words.contiguous().view(torch.uint8), bits, count)


def zero_points(
    words: Int32[Tensor, "groups words"], bits: int, out: int, offset: int
) -> UInt8[Tensor, "groups out"]:
    """Zero points of every group, with `offset` (0 or 1) added again.

    The writers take one off all fields of a word in a single subtraction, in which a zero point of
    0 borrows from its neighbour, so that it is added in the same way. With 3 bits, whose fields
    cross words, they do it field by field, modulo 8.
    """
    if offset and bits != 3:
        ones = sum(1 << shift for shift in range(0, WORD_BITS, bits))
        words = (words.long() + ones).to(torch.int32)  # modulo 2^32
    found = stream(words, bits, out)
    return (found + offset) % 8 if bits == 3 else found


def open_gptq(files: Checkpoint) -> WordCheckpoint:
    """Raises UnsupportedError for a layout that another program repacked, CheckpointError."""
    if files.quant_method != METHOD:
        raise UnsupportedError(f"{files.path}: not a GPTQ checkpoint")
    config = files.config["quantization_config"]
    version = config.get("checkpoint_format") or config.get("format") or "gptq"
    if version not in OFFSETS or config.get("is_marlin_format"):
        raise UnsupportedError(
            f"{files.path}: checkpoint_format {version!r:.40} of config.json; this version reads "
            f"{' and '.join(OFFSETS)}, so save it in one of these"
        )
    return WordCheckpoint.view(files, GPTQLayout(OFFSETS[version]))
