"""A mix of schemes, measured: weights are swapped in a model that is in memory, so that a trial
costs one evaluation and no quantization.

What the reference says of the texts is computed once and kept in a file without a name, up to
KEPT_BYTES of it; the rest is computed again in each trial, by a model that shares its weights with
the one that is tried. Documents are scored apart from one another, each on one thread, so that the
number of threads changes no bit.
"""

from __future__ import annotations

import copy
import os
import tempfile
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import IO

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel

from pennyweight.core import ActivationFormat, FormatError, RecipeError
from pennyweight.evaluate import Evaluation, Interval, Scores, bootstrap_ratios, score_documents
from pennyweight.evaluate.evaluation import FEW_DOCUMENTS, summarize
from pennyweight.evaluate.scores import Sums
from pennyweight.formats.schemes import UNTOUCHED, parse_scheme
from pennyweight.model.attention import BlockAttention
from pennyweight.model.linear import QuantizedLinear
from pennyweight.model.load import load_model
from pennyweight.model.tokens import Tokens
from pennyweight.model.workers import Workers
from pennyweight.study.bank import Bank
from pennyweight.study.beside import Matrix, Operands
from pennyweight.study.texts import Texts

KEPT_BYTES = 4 * 2**30  # of the reference's logits


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one mix lost."""

    assignment: Mapping[str, str]  # tensor -> scheme; what is not named was left as it is
    evaluation: Evaluation  # against the untouched model
    sums: Sums  # of the documents (windows where these are few): what the intervals resample

    @property
    def kl(self) -> Interval:
        """Mean over tokens of KL(reference || model), in nats."""
        assert self.evaluation.comparison is not None, "every trial has a reference"
        return self.evaluation.comparison.kl_nats

    def kl_difference(self, other: Trial) -> Interval:
        """This trial's KL less the other's, paired over the same documents.

        Raises RecipeError if the two were measured on different texts.
        """
        if self.evaluation.digest != other.evaluation.digest:
            raise RecipeError("trials on different texts cannot be compared")
        difference, settings = self.sums.kl - other.sums.kl, self.evaluation.settings
        return bootstrap_ratios(
            difference[None], self.sums.tokens[None], seed=settings.seed,
            resamples=settings.resamples,
        )[0]  # fmt: skip


class Trials:
    """Measures mixes on one text. `on` gives the same for another text, with the same model."""

    def __init__(self, swaps: Swaps, texts: Texts, workers: Workers, folder: Path) -> None:
        """folder: where a file without a name can be; it disappears with this object."""
        self.swaps, self.texts, self._workers, self._folder = swaps, texts, workers, folder
        self.passes = 0.0  # forward passes over the texts so far, the reference's own not counted
        self._reference = Reference(swaps.reference, folder)

    def on(self, texts: Texts) -> Trials:
        return Trials(self.swaps, texts, self._workers, self._folder)

    def measure(self, assignment: Mapping[str, str]) -> Trial:
        """Raises what `Swaps.put` and `score_documents` raise."""
        self.swaps.put(assignment)
        return self.score(assignment)

    def score(self, assignment: Mapping[str, str], *, documents: int | None = None) -> Trial:
        """The model as it is now, called `assignment` in the result.

        documents: only so many, the first ones.
        """
        tokens = self.texts.tokens[:documents]
        scores = self._scores(tokens)
        self.passes += sum(len(each.ids) - 1 for each in tokens) / self.texts.scored
        few = len(scores.documents.tokens) < FEW_DOCUMENTS
        evaluation = summarize(scores, self.texts.settings)
        return Trial(
            assignment=dict(assignment),
            evaluation=_named(evaluation, self.texts),
            sums=scores.windows if few else scores.documents,
        )

    def _scores(self, tokens: tuple[Tokens, ...]) -> Scores:
        settings = self.texts.settings
        assert settings.context is not None, "texts have complete settings"
        model = logits_of(self.swaps.model)

        def score(document: Tokens) -> Scores:
            return score_documents(
                model, [document], context=settings.context or 0, stride=settings.stride,
                reference=self._reference,
            )  # fmt: skip

        return joined(self._workers.map(score, tokens))


def _named(evaluation: Evaluation, texts: Texts) -> Evaluation:
    return replace(evaluation, data=texts.data, split_at=texts.split_at, digest=texts.digest)


def joined(parts: list[Scores]) -> Scores:
    """The scores of documents that were scored one by one."""
    columns = {
        f.name: torch.cat([getattr(part.windows, f.name) for part in parts]) for f in fields(Sums)
    }
    owners = [torch.full_like(part.document, number) for number, part in enumerate(parts)]
    return Scores(windows=Sums(**columns), document=torch.cat(owners), skipped=0, compared=True)


def logits_of(model: PreTrainedModel):
    """input_ids [1, tokens] -> logits [1, tokens, vocab].

    Model and reference are called in the same way, so that an untouched model has a KL of 0.
    """
    return lambda ids: model(input_ids=ids, use_cache=False).logits


class Reference:
    """The logits of a model that does not change, computed once for each window."""

    def __init__(self, model: PreTrainedModel, folder: Path, limit: int = KEPT_BYTES) -> None:
        self._logits, self._limit = logits_of(model), limit
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it outlives this
        weakref.finalize(self, self._file.close)
        self._places: dict[bytes, tuple[int, int]] = {}  # ids -> first byte, bytes
        self._size, self._lock = 0, threading.Lock()

    def __call__(self, ids: Int64[Tensor, "1 tokens"]) -> Float[Tensor, "1 tokens vocab"]:
        key = ids.numpy().tobytes()
        place = self._places.get(key)
        if place is not None:
            data = bytearray(os.pread(self._file.fileno(), place[1], place[0]))
            return torch.frombuffer(data, dtype=torch.float32).view(1, ids.shape[1], -1)
        logits = self._logits(ids)
        self._keep(key, logits)
        return logits

    def _keep(self, key: bytes, logits: Tensor) -> None:
        with self._lock:
            if key in self._places or self._size + logits.nbytes > self._limit:
                return
            start, self._size = self._size, self._size + logits.nbytes
        data = logits.contiguous().numpy().tobytes()
        assert os.pwrite(self._file.fileno(), data, start) == len(data)
        self._places[key] = start, len(data)


@dataclass(eq=False)
class Swaps:
    """A model in memory whose linears are exchanged for those of a bank, and whose attention is
    rounded block by block.

    An exchange replaces modules and copies no weight; only what changes is read.
    """

    bank: Bank
    model: PreTrainedModel  # computes with the mix
    reference: PreTrainedModel  # never changes; shares memory with what is untouched in `model`
    places: Mapping[str, str]  # tensor -> name of its module
    now: dict[str, str] = field(default_factory=dict)  # what differs from the reference
    reads: int = 0  # weights taken from the bank so far
    attention: BlockAttention | None = None  # once any was rounded

    @classmethod
    def load(cls, bank: Bank) -> Swaps:
        """Raises CheckpointError if the model cannot be read."""
        survey = bank.survey
        reference = load_model(bank.path, torch.float32, bank.ingredients.trust_remote_code)
        shared = {id(value): value for value in [*reference.parameters(), *reference.buffers()]}
        model = copy.deepcopy(reference, memo=dict(shared))
        places = {tensor: survey.module(site) for tensor, site in bank.tensors.items()}
        return cls(bank, model, reference, places)

    def put(self, assignment: Mapping[str, str]) -> None:
        """Compute with these schemes from here on; what is not named is untouched.

        Raises RecipeError for a tensor that is no linear of the model or a scheme that the bank
        does not hold, FormatError for one that the tensor cannot take, UnsupportedError for
        attention that cannot be rounded. Nothing is changed then.
        """
        wanted = {t: scheme for t, scheme in assignment.items() if scheme != UNTOUCHED}
        for tensor, scheme in assignment.items():
            self._check(tensor, scheme)
        operands = {name: scheme for name, scheme in wanted.items() if self._operands(name)}
        self._attend(operands)
        for tensor in self.now.keys() - wanted.keys():
            self._restore(tensor)
            del self.now[tensor]
        for tensor, scheme in wanted.items():
            if self.now.get(tensor) != scheme and tensor not in operands:
                self._take(tensor, scheme)
            self.now[tensor] = scheme

    def put_weight(self, tensor: str, weight: Float[Tensor, "out in"]) -> None:
        """Compute with this weight until the next `put`."""
        self._set(tensor, _plain(weight, self._original(tensor).bias))
        self.now[tensor] = ""  # no scheme's name, so that the next `put` takes it out

    def _check(self, tensor: str, scheme: str) -> None:
        if tensor not in self.places and tensor not in self.bank.beside:
            raise RecipeError(f"{tensor}: is not a linear of {self.bank.path} that can be swapped")
        if tensor in self.places and scheme not in (UNTOUCHED, *self.bank.schemes):
            raise RecipeError(
                f"{tensor}: {scheme} is not in the bank, which holds {', '.join(self.bank.schemes)}"
            )
        if not self.bank.takes(tensor, scheme):
            raise FormatError(f"{tensor}: {self.bank.fault(tensor, scheme)}")

    def _operands(self, name: str) -> Operands | None:
        found = self.bank.beside.get(name)
        return found if isinstance(found, Operands) else None

    def _attend(self, operands: Mapping[str, str]) -> None:
        """Round these and no others."""
        formats: dict[int, dict[str, ActivationFormat]] = {}
        for name, scheme in operands.items():
            if found := self._operands(name):
                formats.setdefault(found.block, {})[found.kind] = found.format(scheme)
        if formats and self.attention is None:
            path = self.bank.survey.skeleton.blocks_path
            blocks = self.model.get_submodule(path)
            assert isinstance(blocks, nn.ModuleList), "that is how they were found"
            self.attention = BlockAttention(self.model, blocks)
        if self.attention is not None:
            self.attention.put(formats)

    def _take(self, tensor: str, scheme: str) -> None:
        matrix = self.bank.beside.get(tensor)
        if not isinstance(matrix, Matrix):
            self._set(tensor, self._linear(tensor, scheme))
            return
        weight = nn.Parameter(matrix.rounded(self.bank.survey, scheme), requires_grad=False)
        for name in matrix.modules:
            self._place(name, _with_weight(self.reference.get_submodule(name), weight))

    def _restore(self, tensor: str) -> None:
        matrix = self.bank.beside.get(tensor)
        if isinstance(matrix, Matrix):
            for name in matrix.modules:
                self._place(name, self.reference.get_submodule(name))
        elif tensor in self.places:
            self._set(tensor, self._original(tensor))

    def _linear(self, tensor: str, scheme: str) -> nn.Linear:
        weight, input_scale = self.bank.linear(tensor, scheme)
        self.reads += 1
        bias = self._original(tensor).bias
        activation = parse_scheme(scheme, self.bank.survey.skeleton.dtype).activation
        if activation is None:
            return _plain(weight, bias)
        return QuantizedLinear(weight, bias, activation, input_scale).eval()

    def _original(self, tensor: str) -> nn.Linear:
        found = self.reference.get_submodule(self.places[tensor])
        assert isinstance(found, nn.Linear), "every site is one"
        return found

    def _set(self, tensor: str, module: nn.Module) -> None:
        self._place(self.places[tensor], module)

    def _place(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(parent), child, module)


def _with_weight(module: nn.Module, weight: nn.Parameter) -> nn.Module:
    """The same with another weight; everything else is shared."""
    shared = {id(value): value for value in [*module.parameters(), *module.buffers()]}
    made = copy.deepcopy(module, memo=shared)
    made.weight = weight
    return made


def _plain(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), bias
    return linear.eval()
