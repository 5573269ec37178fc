"""Both models looked at from all sides: what each part costs, which few cost all, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from pennyweight.core import Progress
from pennyweight.evaluate import Interval
from pennyweight.evaluate.evaluation import plain
from pennyweight.model.linear import QuantizedLinear
from pennyweight.model.workers import Workers
from pennyweight.study.diagnosis.cure import Cure, by_gain, smallest_cure
from pennyweight.study.diagnosis.errors import COLUMNS, Error, measure_errors, rounds_alone
from pennyweight.study.diagnosis.loss import Loss, Losses
from pennyweight.study.diagnosis.pair import Pair, Part
from pennyweight.study.diagnosis.remedy import Findings, Remedy, remedies
from pennyweight.study.planning.budget import Budget


@dataclass(frozen=True, kw_only=True)
class PartLoss:
    """What one part costs, measured from both sides."""

    name: str
    tensors: tuple[str, ...]
    numbers: str  # how it is stored
    only_quantized: Loss  # the reference with this part of the quantized model
    only_restored: Loss  # the quantized model with this part of the reference


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    reference: str
    quantized: str
    target: str
    granularity: str
    whole: Loss  # the quantized model as it is
    rest: Loss  # with every part restored
    weights_only: Loss | None  # with inputs not rounded; None if none are
    activations_only: Loss | None  # with exact weights; None if there are none, or rewritten
    parts: tuple[PartLoss, ...]  # the costliest first: by what restoring it gains
    errors: tuple[Error, ...]  # linears in the order in which they run, then blocks
    cure: Cure
    remedies: tuple[Remedy, ...]
    rewritten: tuple[str, ...]  # parameters of blocks that a transform changed
    outside: tuple[str, ...]  # parameters outside the blocks that differ
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, object]:
        return {key: plain(value) for key, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Examination:
    names: tuple[str, str]  # of the reference and the quantized model
    budget: Budget
    pair: Pair
    losses: Losses
    workers: Workers
    progress: Progress

    def __call__(self) -> Diagnosis:
        pair, say = self.pair, self.progress.say
        whole = self.losses(pair.restore([]), {"mix": "quantized"})
        rest = self._restored(frozenset(part.name for part in pair.parts))
        say(f"KL {whole.kl_nats.value:.3g} nats; {len(pair.parts)} parts, each measured twice")
        shares = self._inputs_exact(), self._weights_exact()
        found = [self._part(part, n, len(pair.parts)) for n, part in enumerate(pair.parts, 1)]
        order = by_gain(whole.kl_nats.value, {p.name: p.only_restored.kl_nats.value for p in found})
        say("the smallest set whose restoration is enough")
        cure = smallest_cure(order, lambda names: self._value(self._restored(names)),
                             self.budget.limit)  # fmt: skip
        errors = self._errors()
        ranked = sorted(found, key=lambda part: order.index(part.name))
        return Diagnosis(
            reference=self.names[0], quantized=self.names[1],
            target=str(self.budget), granularity=self.pair.granularity, whole=whole, rest=rest,
            weights_only=shares[0], activations_only=shares[1], parts=tuple(ranked),
            errors=tuple(errors), cure=cure,
            remedies=remedies(self._findings((whole, rest, *shares), cure)),
            rewritten=pair.rewritten, outside=pair.outside,
            settings={**self.losses.subject, "tokens": self.losses.texts.scored},
        )  # fmt: skip

    def _value(self, loss: Loss) -> Interval:
        return getattr(loss, self.budget.kind.metric)

    def _tensors(self, chosen: Sequence[Part]) -> list[str]:
        return sorted(tensor for part in chosen for tensor in part.tensors)

    def _restored(self, names: frozenset[str]) -> Loss:
        chosen = [part for part in self.pair.parts if part.name in names]
        what = {"mix": "restored", "parts": self._tensors(chosen), "as": self._kind}
        return self.losses(self.pair.restore(chosen), what)

    @property
    def _kind(self) -> str:
        """Of a rewritten model a part is all of a block."""
        return "blocks" if self.pair.rewritten else "linears"

    def _part(self, part: Part, number: int, total: int) -> PartLoss:
        what = {"mix": "quantized only", "parts": self._tensors([part]), "as": self._kind}
        quantized = self.losses(self.pair.quantize_only([part]), what)
        restored = self._restored(frozenset([part.name]))
        names = dict.fromkeys(self.pair.numbers[t].name or "plain" for t in part.tensors)
        alone, rest = quantized.kl_nats.value, restored.kl_nats.value
        said = f"{part.name}: alone {alone:.3g}, all but it {rest:.3g} nats"
        self.progress.measured(said, done=number, total=total)
        return PartLoss(
            name=part.name, tensors=part.tensors, numbers=", ".join(names),
            only_quantized=quantized, only_restored=restored,
        )  # fmt: skip

    def _rounding(self) -> dict[str, QuantizedLinear]:
        """The linears that round their inputs, by place."""
        places = [self.pair.place(site) for site in self.pair.survey.sites]
        found = {place: self.pair.quantized.get_submodule(place) for place in places}
        return {k: module for k, module in found.items() if isinstance(module, QuantizedLinear)}

    def _inputs_exact(self) -> Loss | None:
        """The quantized model without the rounding of inputs."""
        modules = {k: _plain(m.weight, m.bias) for k, m in self._rounding().items()}
        if not modules:
            return None
        return self._with(self.pair.restore([]), modules, "weights only")

    def _weights_exact(self) -> Loss | None:
        """The reference with rounded inputs; scales that a transform changed fit no reference."""
        modules: dict[str, nn.Module] = {}
        for place, module in self._rounding().items():
            exact = self.pair.reference.get_submodule(place)
            assert isinstance(exact, nn.Linear), "every site is one"
            modules[place] = QuantizedLinear(
                exact.weight, exact.bias, module.activation, module.input_scale
            ).eval()
        if not modules or self.pair.rewritten:
            return None
        return self._with(self.pair.quantize_only([]), modules, "activations only")

    def _with(self, shell: PreTrainedModel, modules: Mapping[str, nn.Module], name: str) -> Loss:
        """The loss with these modules at their places; what was there is put back."""
        before = {place: shell.get_submodule(place) for place in modules}
        try:
            return self.losses(self.pair.exchange(shell, modules), {"mix": name})
        finally:
            self.pair.exchange(shell, before)

    def _errors(self) -> list[Error]:
        texts = self.losses.texts
        assert texts.settings.context is not None, "texts have complete settings"
        self.progress.say("own and inherited errors")
        errors = measure_errors(
            self.pair, texts.tokens, context=texts.settings.context, workers=self.workers
        )
        for each in errors:
            values = {f"{c}_error": v for c in COLUMNS if (v := getattr(each, c)) is not None}
            self.losses.note({"mix": "error", "at": each.name}, values)
        return errors

    def _findings(
        self, losses: tuple[Loss, Loss, Loss | None, Loss | None], cure: Cure
    ) -> Findings:
        whole, rest, weights, activations = losses
        named = {part.name: part for part in self.pair.parts}
        chosen = [named[name] for name in cure.parts or ()]
        total = sum(part.weights for part in self.pair.parts)
        kl = lambda loss: None if loss is None else loss.kl_nats
        return Findings(
            within=cure.parts == (), target=str(self.budget), whole=whole.kl_nats,
            rest=rest.kl_nats, weights_only=kl(weights), activations_only=kl(activations),
            cure=cure.parts, tensors=tuple(t for part in chosen for t in part.tensors),
            share=sum(part.weights for part in chosen) / total, numbers=self.pair.numbers,
            out_of_order=self._out_of_order(), outside=self.pair.outside,
            rewritten=bool(self.pair.rewritten),
        )  # fmt: skip

    def _out_of_order(self) -> dict[str, float]:
        if self.pair.rewritten:
            return {}  # weights were scaled before they were rounded
        found = {}
        for site in self.pair.survey.sites:
            place = self.pair.place(site)
            exact, quantized = (
                model.get_parameter(f"{place}.weight")
                for model in (self.pair.reference, self.pair.quantized)
            )
            found[site.tensor] = rounds_alone(exact, quantized)
        return found


def _plain(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), bias
    return linear.eval()
