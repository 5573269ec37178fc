"""AWQ checkpoints in the `gemm` layout, as AutoAWQ writes them and transformers and vLLM load them.

    qweight int32 [in, out / 8]      eight outputs of one input in a word
    qzeros  int32 [groups, out / 8]  eight outputs of one group in a word
    scales  float [groups, out]

The eight 4-bit fields of a word, lowest first, hold outputs 0, 2, 4, 6, 1, 3, 5, 7 of the eight.
Zero points are stored as they are.
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

METHOD, BITS = "awq", 4
FIELDS = WORD_BITS // BITS
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # field -> output


@dataclass(frozen=True)
class AWQLayout:
    name: str = METHOD

    def measure(self, weight: tuple[int, ...], zeros: tuple[int, ...], out: int) -> Words | None:
        if weight[1] * FIELDS != out or zeros[1] != weight[1]:
            return None
        return Words(bits=BITS, shape=(out, weight[0]), groups=zeros[0])

    def decode(self, parts: Mapping[str, Tensor], words: Words) -> Float[Tensor, "out in"]:
        group, scales = parts["g_idx"], parts["scales"].float()
        codes, zeros = fields(parts["qweight"]), fields(parts["qzeros"])
        return ((codes.float() - zeros.float()[group]) * scales[group]).T.contiguous()


def fields(words: Int32[Tensor, "rows words"]) -> UInt8[Tensor, "rows out"]:
    """The fields of all words of a row, in the order of the outputs."""
    rows, count = words.shape
    raw = unpack_bits(words.contiguous().view(torch.uint8), BITS, count * FIELDS)
    place = torch.tensor(ORDER).argsort()  # output -> field
    return raw.view(rows, count, FIELDS)[:, :, place].reshape(rows, count * FIELDS)


def open_awq(files: Checkpoint) -> WordCheckpoint:
    """Raises UnsupportedError for other layouts and widths, CheckpointError."""
    if files.quant_method != METHOD:
        raise UnsupportedError(f"{files.path}: not an AWQ checkpoint")
    config = files.config["quantization_config"]
    version, bits = str(config.get("version", "gemm")).lower(), config.get("bits", BITS)
    if version != "gemm" or bits != BITS:
        raise UnsupportedError(
            f"{files.path}: version {version!r:.40} with {bits!r:.10} bits in quantization_config "
            f"of config.json; this version reads 'gemm' with {BITS} bits"
        )
    return WordCheckpoint.view(files, AWQLayout())
