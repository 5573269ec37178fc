"""Corrections: kept bit for bit, stored in the fewest bytes, cut and joined by rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import LowRank, Quantized, Sparse
from pennyweight.formats.corrections import pack_corrections, sparse_bytes, unpack_corrections
from pennyweight.formats.rounding import round_to_nearest
from tests.formats.examples import formats, weights


def random_mask(rows, cols, share, seed):
    return torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed)) < share


def nbytes(stored):
    return sum(part.nbytes for part in stored.values())


@given(
    rows=st.integers(1, 9), cols=st.integers(1, 70), share=st.sampled_from([0, 0.02, 0.3, 1]),
    seed=st.integers(0, 99), dtype=st.sampled_from([torch.float16, torch.bfloat16]),
)  # fmt: skip
def test_kept_weights_survive_storage_bit_for_bit(rows, cols, share, seed, dtype):
    weight = weights(rows, cols, seed).to(dtype).float()
    sparse = Sparse.of(weight, random_mask(rows, cols, share, seed), dtype)
    (back,) = unpack_corrections(pack_corrections([sparse]), (rows, cols))
    assert torch.equal(back.keep, sparse.keep)
    assert torch.equal(back.values, sparse.values) and back.values.dtype == dtype
    restored = back.apply(torch.zeros_like(weight))
    assert torch.equal(restored, weight.where(sparse.keep, torch.zeros(())))


@pytest.mark.parametrize("share,where", [(0.01, "indices"), (0.5, "mask")])
def test_the_cheaper_way_is_stored_and_counted(share, where):
    weight, keep = weights(64, 512, 0), random_mask(64, 512, share, 1)
    stored = pack_corrections([Sparse.of(weight, keep, torch.float16)])
    assert f"sparse.{where}" in stored
    assert nbytes(stored) == sparse_bytes(64, 512, int(keep.sum()), 2)
    assert nbytes(stored) <= 2 * keep.sum() + min(64 * 512 // 8, 4 * 65 + 2 * keep.sum())


def test_whole_columns_are_stored_as_columns():
    weight, keep = weights(64, 128, 0), torch.zeros(64, 128, dtype=torch.bool)
    keep[:, [3, 100]] = True
    stored = pack_corrections([Sparse.of(weight, keep, torch.float16)])
    assert stored["sparse.columns"].tolist() == [3, 100]
    assert nbytes(stored) == 64 * 2 * 2 + 2 * 4
    (back,) = unpack_corrections(stored, (64, 128))
    assert torch.equal(back.apply(torch.zeros(64, 128))[:, 3], weight[:, 3].half().float())


def test_low_rank_is_added_after_weights_were_kept():
    weight = weights(8, 64, 0)
    q = round_to_nearest(weight, formats()["W4A16_g32_asym"])
    keep = random_mask(8, 64, 0.1, 0)
    left, right = weights(8, 2, 1).half(), weights(2, 64, 2).half()
    corrections = (Sparse.of(weight, keep, torch.float16), LowRank(left=left, right=right))
    back = unpack_corrections(pack_corrections(corrections), (8, 64))
    one = Quantized(weight=q, corrections=corrections).dequantize()
    assert torch.equal(Quantized(weight=q, corrections=back).dequantize(), one)
    base = q.dequantize().where(~keep, weight.half().float())
    assert torch.equal(one, base + left.float() @ right.float())


@pytest.mark.parametrize("cut", [0, 1, 5, 8])
def test_rows_that_are_cut_join_again(cut):
    weight = weights(8, 64, 0)
    whole = Quantized(
        weight=round_to_nearest(weight, formats()["W4A16_g32_asym"]),
        corrections=(
            Sparse.of(weight, random_mask(8, 64, 0.2, 0), torch.float16),
            LowRank(left=weights(8, 2, 1), right=weights(2, 64, 2)),
        ),
    )
    parts = [whole.rows(0, cut), whole.rows(cut, 8)]
    assert torch.equal(parts[0].join(parts[1:]).dequantize(), whole.dequantize())
    pieces = torch.cat([part.dequantize() for part in parts])
    assert torch.allclose(pieces, whole.dequantize(), rtol=0, atol=1e-6)


def test_two_of_one_kind_are_refused():
    sparse = Sparse.of(weights(4, 8, 0), random_mask(4, 8, 0.5, 0), torch.float16)
    with pytest.raises(ValueError, match="two corrections of kind Sparse"):
        pack_corrections([sparse, sparse])
