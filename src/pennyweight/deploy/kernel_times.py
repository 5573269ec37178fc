"""How long one product of a shape takes in each scheme, on this machine.

Schemes take turns, so that what else the machine does falls on all of them, in another order each
round, and the median of the rounds is what counts. Between two products as many bytes are read as
the rest of the model has (so far apart lie the two uses of a weight when the model runs), because a
weight that is still in the cache says nothing of one that must be fetched. That throws out the
kernel's instructions too, which a model uses again in every block; so each product follows one with
a twin of its weight elsewhere in memory, which is not timed. (256 x 256 weights of 4 bits where
this was written: 6 us with the weight in the cache, 13 without, 96 without the instructions.)

No kernel is timed before its result is that of the dequantized weight: the entries of both may
differ as independent roundings in the kernel's dtype make them differ, which add up in squares.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pennyweight.core import NumericalError, Scheme
from pennyweight.deploy.kernels import Kernel, Multiply, dense, find_kernel, shape_fault
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import UNTOUCHED, parse_scheme
from pennyweight.model.linear import round_activation, static_input_scale

WARM_UP = 3  # rounds that do not count
ROUNDINGS = 4.0  # of relative size eps that an entry may suffer, in root mean square
STEP = 2.0**-5  # of the inputs, see `_inputs`


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How products are timed."""

    dtype: torch.dtype  # of what is multiplied, where the scheme says nothing else
    tokens: int = 1  # rows of the input: 1 is decoding for one user
    rounds: int = 30
    between_bytes: int = 0  # read between two products
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """Seconds of one product: the median of the rounds, and the quartiles around it."""

    shape: tuple[int, int]  # out, in
    scheme: str
    kernel: str
    seconds: float
    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What has no kernel."""

    scheme: str
    why: str
    shape: tuple[int, int] | None = None  # None: of no shape


@dataclass(frozen=True, kw_only=True)
class Product:
    """A weight that is ready to be multiplied, and what comes out if it is right."""

    scheme: str
    kernel: str
    multiply: Multiply
    twin: Multiply  # the same with a copy of the weight
    expected: Float64[Tensor, "tokens out"]
    squares: Float64[Tensor, "tokens out"]  # of the terms of each sum, summed


@torch.inference_mode()
def kernel_times(
    shape: tuple[int, int], schemes: Sequence[str], timing: Timing
) -> tuple[list[KernelTime], list[LeftOut]]:
    """Times of a weight [out, in] of random numbers, which decide nothing about them.

    Raises NumericalError for a kernel that computes something else than its scheme.
    """
    generator = _generator(timing.seed, shape)
    weight = 0.02 * torch.randn(shape, generator=generator)
    x = _inputs(timing, shape[1], generator)
    products, left_out = [], []
    for name in schemes:
        found = product(name, weight, x)
        (left_out if isinstance(found, LeftOut) else products).append(found)
    for each in products:
        require_right(each, each.multiply(x), x)
    seconds = _timed(products, x, timing, generator)
    return [
        _time(each, mine, shape) for each, mine in zip(products, seconds, strict=True)
    ], left_out


def product(
    name: str, weight: Float[Tensor, "out in"], x: Float[Tensor, "tokens in"]
) -> Product | LeftOut:
    """The product of a scheme, rounded to nearest and packed; or why there is none.

    Raises UnknownNameError for a scheme that there is not.
    """
    if name == UNTOUCHED:
        both = [dense(each, x.dtype) for each in (weight, weight.clone())]
        return _product(name, "mm", both, weight.to(x.dtype).float(), x.float())
    scheme = parse_scheme(name, x.dtype)
    kernel = find_kernel(scheme)
    if kernel is None:
        return LeftOut(scheme=name, why="torch has no CPU kernel for it")
    rows, cols = weight.shape
    if why := shape_fault(kernel, scheme, (rows, cols)):
        return LeftOut(scheme=name, why=why, shape=(rows, cols))
    return _packed(kernel, scheme, weight, x)


def _packed(kernel: Kernel, scheme: Scheme, weight: Tensor, x: Tensor) -> Product:
    stored, seen, scale = round_to_nearest(weight, scheme.weight), x.float(), None
    activation = scheme.activation
    if activation is not None:
        if not activation.dynamic:
            scale = static_input_scale(seen.abs().amax(0), activation)
        seen = round_activation(seen, activation, scale)
    both = [kernel.pack(stored, scheme, x.dtype, scale) for _ in range(2)]  # each packs a copy
    return _product(scheme.name, kernel.name, both, stored.dequantize(), seen)


def _product(
    scheme: str, kernel: str, both: Sequence[Multiply], weight: Tensor, x: Tensor
) -> Product:
    a, b = x.double(), weight.double().t()
    return Product(
        scheme=scheme, kernel=kernel, multiply=both[0], twin=both[1], expected=a @ b,
        squares=a.square() @ b.square(),
    )  # fmt: skip


def require_right(product: Product, found: Tensor, x: Tensor) -> None:
    """Raises NumericalError if a kernel's result on x [tokens, in] is not that of its scheme.

    Each term of a sum is rounded a few times in the kernel's dtype on its way, and each of n
    partial sums in float32, whose size grows to sqrt(n) terms. Independent errors add in squares,
    so that their root mean square is below (ROUNDINGS * eps + sqrt(n) * eps of float32) times that
    of sqrt(sum of squared terms).
    """
    error = (found.double() - product.expected).square().mean().sqrt()
    summing = math.sqrt(x.shape[1]) * torch.finfo(torch.float32).eps
    roundings = ROUNDINGS * torch.finfo(x.dtype).eps + summing
    limit = roundings * product.squares.mean().sqrt()
    if not bool(error <= limit):
        raise NumericalError(
            f"{product.kernel} in {x.dtype} does not compute {product.scheme} here: results are "
            f"off by {error:.3g} in root mean square, and rounding explains {limit:.3g}. Leave the "
            "scheme out, or try another --dtype"
        )


def _timed(
    products: Sequence[Product], x: Tensor, timing: Timing, generator: torch.Generator
) -> list[list[float]]:
    """Seconds of each product in each round; the first rounds only warm up."""
    # Ones, because zeros that nobody wrote are one page of memory, which stays in the cache.
    between = torch.ones(max(1, timing.between_bytes // 4))
    seconds: list[list[float]] = [[] for _ in products]
    for number in range(WARM_UP + timing.rounds):
        for index in torch.randperm(len(products), generator=generator).tolist():
            multiply = products[index].multiply
            between.sum()
            products[index].twin(x)
            start = time.perf_counter_ns()
            multiply(x)
            taken = time.perf_counter_ns() - start
            if number >= WARM_UP:
                seconds[index].append(taken / 1e9)
    return seconds


def _time(product: Product, seconds: Sequence[float], shape: tuple[int, int]) -> KernelTime:
    shares = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    low, middle, high = torch.tensor(seconds, dtype=torch.float64).quantile(shares).tolist()
    return KernelTime(
        shape=shape, scheme=product.scheme, kernel=product.kernel, seconds=middle, lower=low,
        upper=high,
    )  # fmt: skip


def _inputs(timing: Timing, cols: int, generator: torch.Generator) -> Float[Tensor, "tokens cols"]:
    """Multiples of a power of two whose largest magnitude, 127 of them, makes it the step of int8:
    no input lies near the middle of two codes, where a last digit would decide what is right."""
    codes = torch.randint(-127, 128, (timing.tokens, cols), generator=generator)
    x = codes.float() * STEP
    x[:, 0] = 127 * STEP
    return x.to(timing.dtype)


def _generator(seed: int, shape: tuple[int, int]) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:kernel times:{shape}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))
