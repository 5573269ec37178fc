"""Where the error of a quantized model comes from, linear by linear and block by block.

With R a linear (or block) of the reference, Q the same of the quantized model, and x and x' what it
is given in the one and in the other:

    own        = |Q(x)  - R(x)|^2 / |R(x)|^2     made here
    inherited  = |R(x') - R(x)|^2 / |R(x)|^2     made before and carried on
    total      = |Q(x') - R(x)|^2 / |R(x)|^2     what the next layer sees

A linear's own error is also taken apart: `weight` with its input exact, `activation` with its
weight exact. Sums run over all tokens. Perturbing one thing at a time follows "What Makes
Quantization for Large Language Models Hard?", https://arxiv.org/abs/2403.06408.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from pennyweight.model.linear import QuantizedLinear, round_activation
from pennyweight.model.tokens import Tokens
from pennyweight.model.workers import Workers
from pennyweight.pipeline.survey import Site
from pennyweight.study.diagnosis.pair import Pair
from pennyweight.study.units import EXPERT

ROWS, RUN = 256, 16  # of a weight, where `rounds_alone` looks
COLUMNS = ("own", "inherited", "total", "weight", "activation")


@dataclass(frozen=True, kw_only=True)
class Error:
    """Squared errors over the energy of the reference's output; None where there is no such."""

    name: str
    block: int
    kind: str  # linear, or block
    own: float | None
    inherited: float | None  # of experts None: each model sends them tokens of its own choice
    total: float | None
    weight: float | None = None  # of blocks None
    activation: float | None = None


@dataclass
class _Sums:
    """Energies so far, float64."""

    output: float = 0.0
    errors: dict[str, float] | None = None

    def add(self, output: Tensor, errors: Mapping[str, Tensor | None]) -> None:
        self.output += _energy(output)
        sums = self.errors or dict.fromkeys(errors, 0.0)
        self.errors = {
            name: sums[name] + _energy(error - output)
            for name, error in errors.items()
            if error is not None and name in sums
        }

    def share(self, name: str) -> float | None:
        if self.errors is None or name not in self.errors:
            return None
        return self.errors[name] / self.output if self.output else 0.0


Call = tuple[tuple, dict[str, Any], Any]  # arguments, keywords, output


def measure_errors(
    pair: Pair, documents: Sequence[Tokens], *, context: int, workers: Workers
) -> list[Error]:
    """On the first window of each document: linears in the order in which they run, then blocks.

    Of a rewritten model only blocks: the inputs of its linears are scaled otherwise.
    """
    sites = () if pair.rewritten else pair.survey.sites
    blocks = [
        pair.survey.skeleton.block_prefix(index).removesuffix(".")
        for index in range(len(pair.survey.topologies))
    ]
    sums = {name: _Sums() for name in [*(site.name for site in sites), *blocks]}
    for document in documents:
        ids = document.ids[None, :context]
        places = [*(pair.place(site) for site in sites), *blocks]
        first = calls_of(pair.reference, places, ids)
        second = calls_of(pair.quantized, places, ids)
        tasks: list[Callable[[], None]] = []
        for site in sites:
            tasks.append(functools.partial(_add_linear, pair, site, first, second, sums[site.name]))
        for block in blocks:
            tasks.append(functools.partial(_add_block, pair, block, first, second, sums[block]))
        workers.map(lambda task: task(), tasks)
    linears = [_error(site.name, site.block, "linear", sums[site.name]) for site in sites]
    return linears + [_error(name, i, "block", sums[name]) for i, name in enumerate(blocks)]


def calls_of(model: PreTrainedModel, places: Sequence[str], ids: Tensor) -> dict[str, Call]:
    """What the modules at these places were called with and gave; without those not called."""
    found: dict[str, Call] = {}
    watched = [
        (model.get_submodule(place), functools.partial(_keep, found, place)) for place in places
    ]
    with _hooks(watched), torch.inference_mode():
        model(input_ids=ids, use_cache=False)
    return found


def _keep(
    found: dict[str, Call], place: str, _: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any
) -> None:
    found[place] = args, kwargs, out


@contextmanager
def _hooks(watched: Sequence[tuple[nn.Module, Any]]) -> Iterator[None]:
    handles = [m.register_forward_hook(hook, with_kwargs=True) for m, hook in watched]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_linear(
    pair: Pair, site: Site, first: dict[str, Call], second: dict[str, Call], sums: _Sums
) -> None:
    place = pair.place(site)
    exact, quantized = (m.get_submodule(place) for m in (pair.reference, pair.quantized))
    assert isinstance(exact, nn.Linear) and isinstance(quantized, nn.Linear)
    if place not in first:
        return  # an expert that no token was sent to
    x, output = first[place][0][0], first[place][2]
    errors: dict[str, Tensor | None] = {
        "own": quantized(x),
        "weight": F.linear(x, quantized.weight, quantized.bias),
        "activation": exact(rounded(x, quantized)),
    }
    if EXPERT.search(f".{site.local}.") is None:
        there = second[place]
        errors |= {"inherited": exact(there[0][0]), "total": there[2]}
    sums.add(output, errors)


def rounded(x: Tensor, linear: nn.Linear) -> Tensor:
    """The input as the quantized linear would round it; itself if it does not."""
    if not isinstance(linear, QuantizedLinear):
        return x
    return round_activation(x, linear.activation, linear.input_scale)


def _add_block(
    pair: Pair, place: str, first: dict[str, Call], second: dict[str, Call], sums: _Sums
) -> None:
    exact, quantized = (m.get_submodule(place) for m in (pair.reference, pair.quantized))
    (args, kwargs, output), there = first[place], second[place]
    errors: dict[str, Tensor | None] = {
        "own": hidden(quantized(*args, **kwargs)),
        "inherited": hidden(exact(*there[0], **there[1])),
        "total": hidden(there[2]),
    }
    sums.add(hidden(output), errors)


def hidden(output: Any) -> Tensor:
    """Some blocks return a tensor, some a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output


def _error(name: str, block: int, kind: str, sums: _Sums) -> Error:
    values = {column: sums.share(column) for column in COLUMNS}
    return Error(name=name, block=block, kind=kind, **values)


def _energy(x: Tensor) -> float:
    return x.double().square().sum().item()


def rounds_alone(weight: Tensor, quantized: Tensor) -> float:
    """The share of neighbouring weights, in order of size, whose rounded values are out of order.

    Rounding each weight by itself keeps the order of those that share a scale, so the share is 0
    but for numerical noise; GPTQ and its relatives move weights to make up for the errors of
    others. Looks at runs of RUN columns, which groups are multiples of, of the first ROWS rows.
    """
    rows, cols = min(ROWS, weight.shape[0]), weight.shape[1] // RUN * RUN
    runs, found = (each[:rows, :cols].reshape(-1, RUN) for each in (weight, quantized))
    steps = found.gather(1, runs.argsort(1)).diff(dim=1)
    slack = 1e-5 * found.abs().amax(1, keepdim=True)
    return float((steps < -slack).double().mean()) if steps.numel() else 0.0
