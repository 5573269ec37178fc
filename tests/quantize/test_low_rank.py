"""Corrections of low rank: what their papers say, and their order on the expected output error."""

import pytest
import torch

from pennyweight.core import (
    FormatError,
    LowRank,
    NumericalError,
    QTensor,
    RecipeError,
    Serial,
    Stats,
)
from pennyweight.formats.corrections import pack_corrections, unpack_corrections
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.model.workers import start_workers
from pennyweight.pipeline.solve import solve
from pennyweight.quantize import QUANTIZERS, low_rank
from tests.contracts.problems import output_loss, problem
from tests.quantize.real import LINEARS, real_layers
from tests.reference import low_rank as reference

FORMAT = parse_scheme("W3A16_g32").weight
METHODS = ("lorc", "lqer", "qera")


def correction(found):
    (part,) = found.corrections
    assert isinstance(part, LowRank)
    return part.apply(torch.zeros(found.weight.shape))


def run(name, weight, stats, format=FORMAT, **options):
    method = QUANTIZERS[name](**({"factors": "float32"} | options))
    return solve(method, weight, format, stats, Serial())


@pytest.mark.parametrize("shape", [(48, 64), (64, 48)])
def test_the_closed_form_is_that_of_the_papers(shape):
    weight, stats = problem(*shape)
    format = parse_scheme("W3A16").weight
    error = weight - round_to_nearest(weight, format).dequantize()
    expected = {
        "lorc": reference.lorc(error, 5),
        "lqer": reference.lqer(error, stats.abs_sum / stats.tokens, 5),
        "qera": reference.qera_exact(error, stats.hessian, 5),
    }
    for name, slow in expected.items():
        found = correction(run(name, weight, stats, format, rank=5))
        # 1e-5: float32 of the factors; the decomposition itself is float64
        assert (found - slow).abs().max() < 1e-5 * error.norm(), name


def test_the_diagonal_of_qera_is_the_root_mean_square():
    weight, stats = problem(48, 64)
    error = weight - round_to_nearest(weight, FORMAT).dequantize()
    slow = reference.lqer(error, (stats.square_sum / stats.tokens).sqrt(), 5)
    found = correction(run("qera", weight, stats, rank=5, inputs="diagonal"))
    assert (found - slow).abs().max() < 1e-5 * error.norm()


def test_large_matrices_lose_next_to_nothing_in_the_krylov_space():
    generator = torch.Generator().manual_seed(0)
    error, rank = torch.randn(400, 500, generator=generator), 8
    assert (rank + low_rank.SPARE) * low_rank.DEPTH < 400
    left, right = low_rank.factors(error, lambda block: block, rank, Serial())
    best = torch.linalg.svdvals(error.double())[rank:].square().sum()
    # Random errors have the flattest spectrum there is, on which a Krylov space converges slowest.
    assert best <= (error - left @ right).double().square().sum() < best * (1 + 1e-3)


@pytest.mark.parametrize("name", LINEARS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_exact_is_at_or_below_lqer_is_at_or_below_lorc(name, bits):
    """QERA's claim, on the output error of real weights with real inputs."""
    weight, stats = real_layers()[name]
    format = parse_scheme(f"W{bits}A16_g64").weight
    left = {
        method: output_loss(run(method, weight, stats, format, rank=8).dequantize() - weight, stats)
        for method in METHODS
    }
    diagonal = run("qera", weight, stats, format, rank=8, inputs="diagonal")
    left["diagonal"] = output_loss(diagonal.dequantize() - weight, stats)
    rounded = output_loss(round_to_nearest(weight, format).dequantize() - weight, stats)
    assert left["qera"] <= min(left["lqer"], left["diagonal"]) and left["lorc"] < rounded
    assert left["lqer"] <= left["lorc"]


def test_more_rank_leaves_less_and_full_rank_nothing():
    weight, stats = problem(48, 64)
    for name in METHODS:
        left = [
            output_loss(run(name, weight, stats, rank=rank).dequantize() - weight, stats)
            for rank in (1, 4, 16, 48)
        ]
        assert left == sorted(left, reverse=True)
        assert left[-1] < 1e-9 * left[0]


@pytest.mark.parametrize("base", ["gptq", "mse_clip"])
def test_any_quantizer_can_be_corrected(base):
    weight, stats = problem()
    plain = QUANTIZERS[base]()(weight, FORMAT, stats)
    found = run("qera", weight, stats, base=base)
    assert torch.equal(found.weight.codes, plain.weight.codes)
    loss = lambda one: output_loss(one.dequantize() - weight, stats)
    assert loss(found) < loss(plain)
    assert QUANTIZERS["qera"](base=base, inputs="diagonal").needs >= {"square_sum"}
    assert QUANTIZERS["lorc"](base="gptq").needs == {"gram"}


def test_kept_weights_of_a_base_cannot_be_there():
    with pytest.raises(RecipeError, match="gwq looks at whole tensors"):
        assert QUANTIZERS["lorc"](base="gwq").needs


@pytest.mark.parametrize("factors", ["auto", "bfloat16", "int8"])
def test_narrow_factors_lose_little_and_survive_storage(factors):
    weight, stats = problem()
    found, fine = (run("qera", weight, stats, factors=kind) for kind in (factors, "float32"))
    stored = pack_corrections(found.corrections)
    (back,) = unpack_corrections(stored, found.weight.shape)
    assert torch.equal(back.apply(weight), found.corrections[0].apply(weight))
    assert isinstance(back.left, QTensor) == (factors == "int8")
    loss = lambda one: output_loss(one.dequantize() - weight, stats)
    assert loss(found) < 1.02 * loss(fine)
    rank, (rows, cols) = 32, weight.shape
    size = 1 if factors == "int8" else 2
    scales = 2 * (rows + rank) if factors == "int8" else 0
    assert sum(part.nbytes for part in stored.values()) == rank * (rows + cols) * size + scales


def test_the_number_of_threads_changes_nothing():
    weight, stats = problem(rows=1100, columns=64)
    results = []
    for threads in (1, 2):
        with start_workers(threads) as workers:
            found = solve(QUANTIZERS["qera"](rank=4), weight, FORMAT, stats, workers)
        results.append(found.dequantize())
    assert torch.equal(*results)


@pytest.mark.parametrize("rank", [0, 49])
def test_a_rank_that_the_weight_does_not_have_is_refused(rank):
    weight, stats = problem(48, 64)
    with pytest.raises(FormatError, match=f"rank {rank} for a weight of 48 x 64; use rank 1 to 48"):
        run("lorc", weight, stats, rank=rank)


def test_channels_without_input_and_weights_without_error():
    weight, stats = problem(48, 64)
    dead = torch.zeros(64)
    dead[:40] = 1
    gram = stats.gram * dead * dead[:, None]
    seen = Stats(tokens=stats.tokens, gram=gram, abs_sum=stats.abs_sum * dead)
    for name in ("lqer", "qera"):
        assert run(name, weight, seen, rank=30).dequantize().isfinite().all()
        assert (run(name, weight * 0, seen, rank=4).dequantize() == 0).all()
        none = Stats(tokens=0, gram=gram * 0, abs_sum=stats.abs_sum * 0)
        assert run(name, weight, none, rank=4).dequantize().isfinite().all()


def test_a_matrix_of_one_column():
    weight, stats = problem(5, 1)
    found = run("qera", weight, stats, parse_scheme("W4A16").weight, rank=1)
    assert torch.allclose(found.dequantize(), weight, rtol=1e-5)


def test_what_is_no_number_is_refused():
    weight, stats = problem()
    stats.gram[3, 3] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        run("qera", weight, stats)
