"""Kernels against the definition of their schemes, and what a file of times holds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pennyweight.cli.main import app
from pennyweight.core import (
    BudgetError,
    NumericalError,
    RecipeError,
    UnknownNameError,
    UnsupportedError,
)
from pennyweight.deploy.kernel_times import (
    LeftOut,
    Product,
    Timing,
    _inputs,
    kernel_times,
    product,
    require_right,
)
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.pipeline.latency import Asked, measure_latencies
from pennyweight.study.planning.costs import measured_costs

INT4 = ("W4A16_g32", "W4A16_g64", "W4A16_g128_asym", "W4A16_g32_fzp", "W4A16")
INT8 = ("W8A16", "W8A8", "W8A8_tensor", "W8A8_static", "W8A8_tensor_static")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def inputs(dtype, tokens=3, cols=128):
    timing = Timing(dtype=dtype, tokens=tokens)
    return _inputs(timing, cols, torch.Generator().manual_seed(1))


def weights(rows=48, cols=128):
    return 0.02 * torch.randn(rows, cols, generator=torch.Generator().manual_seed(2))


def by_definition(name, weight, x):
    """The oracle: sums in float64 over scale * (code - zero), and over the codes of the input."""
    scheme = parse_scheme(name, x.dtype)
    stored = round_to_nearest(weight, scheme.weight)
    rows, cols = weight.shape
    codes = stored.codes.double().numpy()
    scale = np.broadcast_to(stored.scale.double().numpy(), (rows, stored.scale.shape[1]))
    scale = np.repeat(scale, cols // scale.shape[1], axis=1)
    middle = 2 ** (scheme.weight.grid.bits - 1)
    zero = np.full_like(scale, middle)
    if stored.zero_point is not None:
        zero = np.repeat(stored.zero_point.double().numpy(), cols // stored.zero_point.shape[1], 1)
    wide = x.double().numpy()
    if scheme.activation is not None:
        axis = 1 if scheme.activation.dynamic else None
        step = np.abs(wide).max(axis=axis, keepdims=True) / 127
        wide = np.clip(np.round(wide / step), -128, 127) * step
    return wide @ (scale * (codes - zero)).T


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*INT4, *INT8])
def test_each_kernel_is_its_scheme_by_definition(name, dtype):
    weight, x = weights(), inputs(dtype)
    found = product(name, weight, x)
    assert isinstance(found, Product)
    oracle = by_definition(name, weight, x)
    assert np.allclose(found.expected.numpy(), oracle, rtol=1e-5, atol=1e-6)
    result = found.multiply(x)
    assert result.dtype == dtype and result.shape == (3, 48)
    error = np.sqrt(np.square(result.double().numpy() - oracle).mean())
    # 4 roundings of each term and 128 of partial sums of up to sqrt(128) terms: see require_right
    limit = 4 * torch.finfo(dtype).eps + 128**0.5 * 2**-23
    assert error <= limit * np.sqrt(np.square(oracle).mean())
    require_right(found, result, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_untouched_is_the_product_itself(dtype):
    weight, x = weights(), inputs(dtype, tokens=1)
    found = product("W16A16", weight, x)
    assert isinstance(found, Product)
    oracle = x.double() @ weight.to(dtype).double().T
    assert torch.allclose(found.expected, oracle)
    require_right(found, found.multiply(x), x)


def test_a_kernel_that_computes_something_else_is_found_out():
    """Scales of the rows in another order; groups of other weights; a zero point forgotten."""
    weight, x = weights() * (1 + torch.arange(48)[:, None] / 10), inputs(torch.bfloat16)
    for name in ("W8A16", "W4A16_g32", "W4A16_g32_asym", "W8A8"):
        right = product(name, weight, x)
        for wrong in (product(name, weight.roll(1, 0), x), product(name, weight.roll(32, 1), x)):
            with pytest.raises(NumericalError, match=rf"does not compute {name} here"):
                require_right(right, wrong.multiply(x), x)
    with pytest.raises(NumericalError):
        require_right(right, torch.full((3, 48), torch.nan), x)


@pytest.mark.parametrize(
    ("name", "why", "shape"),
    [
        ("W8A16_g128", "no CPU kernel", None),
        ("W3A16_g32", "no CPU kernel", None),
        ("NVFP4", "no CPU kernel", None),
        ("W8A8_fp8", "no CPU kernel", None),
        ("W4A8_dgq_g64", "no CPU kernel", None),
        ("W4A16_nf4_g64", "no CPU kernel", None),
        ("W4A16_g16", "groups of 16; the kernel has 32", (24, 64)),
        ("W4A16_g32", "24 rows; the kernel takes multiples of 16", (24, 64)),
        ("W4A16_g128", "not a multiple of group_size 128", (24, 64)),
    ],
)
def test_what_has_no_kernel_is_left_out_with_the_reason(name, why, shape):
    found = product(name, weights(24, 64), inputs(torch.float32, cols=64))
    assert isinstance(found, LeftOut)
    assert why in found.why and (found.scheme, found.shape) == (name, shape)


def test_times_are_positive_and_in_turns():
    timing = Timing(dtype=torch.bfloat16, rounds=3, between_bytes=1000)
    times, left_out = kernel_times((32, 64), ("W8A16", "W4A16_g32", "W3A16", "W16A16"), timing)
    assert [t.scheme for t in times] == ["W8A16", "W4A16_g32", "W16A16"]
    assert all(0 < t.lower <= t.seconds <= t.upper and t.shape == (32, 64) for t in times)
    assert [each.scheme for each in left_out] == ["W3A16"]


def test_a_file_of_a_model_has_every_shape_alone_and_fused(tiny_llama, tmp_path):
    found = measure_latencies(
        Asked(model=str(tiny_llama), schemes=("W4A16_g32", "W8A16_g32"), rounds=2), threads=1
    )
    found.save(tmp_path / "costs.json")
    assert {t.shape for t in found.times} == {
        (64, 64), (32, 64), (128, 64), (96, 64), (192, 64), (64, 96),
    }  # fmt: skip  # q and o, k and v, the three of these fused; gate and up, the two; down
    assert {t.scheme for t in found.times} == {"W4A16_g32", "W16A16"}
    facts = json.loads((tmp_path / "costs.json").read_text())
    assert facts["left_out"] == [
        {"scheme": "W8A16_g32", "why": "torch has no CPU kernel for it", "shape": None}
    ]
    measured = facts["measured"]
    assert (measured["threads"], measured["tokens"], measured["dtype"]) == (1, 1, "float32")
    assert measured["versions"]["torch"] == torch.__version__ and measured["processor"]
    costs = measured_costs(tmp_path / "costs.json", {"a": (64, 64)})
    assert (costs.name, costs.unit, costs.schemes) == ("latency", "s", ("W4A16_g32", "W16A16"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"schemes": ("W3A16_g32", "NVFP4")}, UnsupportedError, "no scheme has a kernel"),
        ({"schemes": ("W9A16",)}, UnknownNameError, "unknown scheme 'W9A16'"),
        ({"dtype": "int8"}, RecipeError, "expected one of bfloat16, float16, float32"),
    ],
)
def test_what_cannot_be_timed(tiny_llama, changes, error, message):
    with pytest.raises(error, match=message):
        measure_latencies(replace(Asked(model=str(tiny_llama), rounds=1), **changes))


def test_from_the_command_line_to_a_plan(tiny_llama, token_file, tmp_path):
    """`costs` writes what `plan --minimize latency` reads; without --schemes those of the file.
    Times are then put in the order that products this small do not have, to have one outcome."""
    run = lambda *words: CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    costs = tmp_path / "costs.json"
    shown = run("costs", tiny_llama, "-o", costs, "--rounds", 2, "--threads", 1, "--schemes",
                "W4A16_g32,W8A16,W8A16_g32", "-q")  # fmt: skip
    assert shown.exit_code == 0 and "192 x 64" in shown.stdout and "W16A16" in shown.stdout
    assert "left out: W8A16_g32: torch has no CPU kernel" in shown.stderr
    order = {"W4A16_g32": 2e-6, "W8A16": 1e-6, "W16A16": 3e-6}
    content = json.loads(costs.read_text())
    times = {}
    for entry in content["cost"]:
        entry["value"] = order[entry["scheme"]] + 1e-9 * entry["shape"][0]
        times[tuple(entry["shape"]), entry["scheme"]] = entry["value"]
    costs.write_text(json.dumps(content))
    fresh = tmp_path / "fresh.json"
    fresh.write_text(json.dumps([[(7 * i + j * j) % 128 for j in range(40)] for i in range(12)]))
    common = [
        "plan", tiny_llama, "--budget", "kl<=0.5", "--costs", costs, "--calibrate", token_file,
        "--samples", 4, "--tokens", 32, "--sense-data", token_file, "--data", fresh, "--quantizer",
        "rtn", "--estimator", "fisher", "--rounds", 2, "--threads", 1, "-q", "--work",
        tmp_path / "work",
    ]  # fmt: skip
    found = run(*common, "--minimize", "latency", "-o", tmp_path / "plan.toml", "--json")
    facts = json.loads(found.stdout)
    assert (facts["minimise"], facts["cost_unit"]) == ("latency", "s")
    chosen = facts["candidates"][facts["chosen"]]
    assert set(chosen["schemes"].values()) == {"W8A16"}
    # Two blocks of q + k + v, o, gate + up and down.
    by_hand = 2 * sum(times[(rows, cols), "W8A16"]
                      for rows, cols in ((128, 64), (64, 64), (192, 64), (64, 96)))  # fmt: skip
    assert chosen["cost"] == pytest.approx(by_hand, rel=1e-9)
    priced = run(*common, "--minimize", "cost", "--price-per-hour", 3.6, "-o", tmp_path / "b.toml")
    assert f"{by_hand / 1e3:.4g}" in priced.stdout and "cost," in priced.stdout
    for entry in content["cost"]:
        entry["value"] = 1.0 if entry["scheme"] == "W16A16" else 2.0
    costs.write_text(json.dumps(content))
    with pytest.raises(BudgetError, match="leaving every weight as it is takes the least latency"):
        run(*common, "--minimize", "latency", "-o", tmp_path / "plan.toml")
