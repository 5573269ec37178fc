"""Each estimator against its formula, worked out another way."""

import pytest
import torch

from pennyweight.core import RecipeError, UnsupportedError
from pennyweight.evaluate import evaluate_tokens
from pennyweight.model.calibration.base import seeded
from pennyweight.model.load import load_model
from pennyweight.study.sensitivity.estimators import ESTIMATORS
from pennyweight.study.sensitivity.estimators.base import Bench, Contextual, Estimator
from pennyweight.study.sensitivity.estimators.direct import Direct
from pennyweight.study.sensitivity.estimators.fisher import Fisher
from pennyweight.study.sensitivity.estimators.in_context import InContext
from pennyweight.study.sensitivity.estimators.linearity import Linearity
from pennyweight.study.sensitivity.estimators.output_error import OutputError
from tests.reference.gradients import weight_gradients
from tests.study.benches import sensing

SCHEMES = ("W3A16_g32", "W8A16_g32")
QKV = "model.layers.0.self_attn.q_proj+k_proj+v_proj"
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def opened(tiny_llama, token_file, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    with sensing(tiny_llama, token_file, work, quantizer="gptq", schemes=SCHEMES) as found:
        yield found


@pytest.fixture
def bench(opened) -> Bench:
    return opened.bench


@pytest.fixture
def wanted(opened):
    return opened.wanted()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_keeps_the_protocol(name, bench, wanted):
    make = ESTIMATORS[name]()
    assert isinstance(make, Estimator) and make.source and make.cost
    found = list(make(bench, wanted))
    assert [(one.unit, one.scheme) for one in found] == wanted
    values = {(one.unit.name, one.scheme): one.value for one in found}
    for unit in {unit.name for unit, _ in wanted}:
        assert values[unit, "W3A16_g32"] > values[unit, "W8A16_g32"]
        # among other errors a small one may happen to cancel more than it adds
        assert values[unit, "W8A16_g32"] > 0 or isinstance(make, Contextual)


def test_direct_is_the_kl_of_the_unit_alone(bench, wanted):
    unit, scheme = wanted[0]
    assert unit.name == QKV
    (found,) = Direct()(bench, [(unit, scheme)])
    model, reference = load_model(bench.bank.path), load_model(bench.bank.path)
    for tensor in unit.tensors:
        linear = model.get_submodule(tensor.removesuffix(".weight"))
        linear.weight.data.copy_(bench.bank.weight(tensor, scheme))
    texts = bench.trials.texts
    expected = evaluate_tokens(
        model, texts.tokens, reference=reference, settings=texts.settings
    ).comparison.kl_nats  # fmt: skip
    assert (found.lower, found.value, found.upper) == (expected.low, expected.value, expected.high)


def test_linearity_is_the_kl_of_noise_times_the_relative_error(bench, wanted):
    unit, scheme = wanted[0]
    (found,) = Linearity(noise=0.04, share=0.5)(bench, [(unit, scheme)])
    model, reference = load_model(bench.bank.path), load_model(bench.bank.path)
    errors = []
    for tensor in unit.tensors:
        linear = model.get_submodule(tensor.removesuffix(".weight"))
        weight = linear.weight.data.clone()
        noise = torch.randn(weight.shape, generator=seeded(0, tensor))
        rms = weight.square().mean().sqrt()
        linear.weight.data.add_(0.2 * rms * noise)
        error = bench.bank.weight(tensor, scheme) - weight
        errors.append((error.square().sum() / weight.square().sum()).item())
    kl = evaluate_tokens(
        model, bench.trials.texts.tokens[:4], reference=reference,
        settings=bench.trials.texts.settings,
    ).comparison.kl_nats.value  # fmt: skip
    # the two sum the size of the weights in another order, in float32
    assert found.value == pytest.approx(kl / 0.04 * sum(errors) / len(errors), rel=1e-4)


def test_linearity_asks_for_one_coefficient_a_unit(bench, wanted):
    before = bench.trials.passes
    list(Linearity(share=0.5)(bench, wanted))
    assert bench.trials.passes - before == pytest.approx(len(wanted) / 2 * 0.5)


@pytest.mark.parametrize(
    "options", [{"noise": 0.0}, {"noise": 1.0}, {"share": 0.0}, {"share": 2.0}]
)
def test_linearity_without_noise_or_text(bench, wanted, options):
    with pytest.raises(RecipeError, match="expected noise above 0 and below 1, and share"):
        list(Linearity(**options)(bench, wanted))


def test_fisher_is_half_the_squared_gradient_times_the_squared_error(bench, wanted):
    unit, scheme = wanted[0]
    (found,) = Fisher(samples=6, anchor=False)(bench, [(unit, scheme)])
    rows = bench.bank.calibration.ids[:6]
    sums = weight_gradients(bench.bank.survey.skeleton, rows)
    expected = 0.0
    for tensor in unit.tensors:
        error = bench.bank.weight(tensor, scheme) - bench.bank.weight(tensor, "W16A16")
        # gradients are of the mean over 31 predicted tokens: one token's square is 31 times that
        fisher = 31 * sums[tensor]["squared_gradient"] / 6
        expected += 0.5 * float((fisher * error.double().square()).sum())
    assert found.value == pytest.approx(expected, rel=1e-4)


def test_fisher_costs_one_pass_back_and_one_for_each_scheme(bench, wanted):
    before = bench.spent.forward, bench.spent.backward
    list(Fisher(samples=2)(bench, wanted))
    text = bench.trials.texts.scored
    assert bench.spent.forward - before[0] == 2 * 32 + len(SCHEMES) * text
    assert bench.spent.backward - before[1] == 2 * 32


def test_fisher_without_samples(bench, wanted):
    with pytest.raises(RecipeError, match="samples: expected at least 1, found 0"):
        list(Fisher(samples=0)(bench, wanted))


@pytest.mark.parametrize("make", [Fisher(samples=2), OutputError()])
def test_an_anchor_makes_them_sum_to_the_kl_of_all_at_once(make, bench, wanted):
    found = [one.value for one in make(bench, wanted) if one.scheme == "W3A16_g32"]
    together = bench.trials.measure(dict.fromkeys(bench.bank.survey.by_tensor, "W3A16_g32"))
    assert sum(found) == pytest.approx(together.kl.value)


def test_output_error_is_what_the_pipeline_noted(bench, wanted):
    unit, scheme = wanted[0]
    (found,) = OutputError(anchor=False)(bench, [(unit, scheme)])
    noted = [bench.bank.fact(tensor, scheme) for tensor in unit.tensors]
    assert found.value == sum(fact["loss"] for fact in noted)
    assert {fact["metric"] for fact in noted} == {"output"}


def test_output_error_of_a_quantizer_that_observes_nothing(tiny_llama, token_file, tmp_path):
    with (
        sensing(tiny_llama, token_file, tmp_path, schemes=("W4A16_g32",)) as opened,
        pytest.raises(UnsupportedError, match=r"rtn observes no inputs.*q_proj.*is not known"),
    ):
        list(OutputError()(opened.bench, opened.wanted()))


@pytest.mark.parametrize("name", ["fisher", "linearity", "output_error"])
def test_what_looks_at_weights_refuses_schemes_that_round_inputs(name, bench, wanted):
    wanted = [(wanted[0][0], "W8A8")]
    with pytest.raises(UnsupportedError, match=f"{name} looks at weights alone, and W8A8 also"):
        list(ESTIMATORS[name]()(bench, wanted))


def test_in_context_is_what_the_unit_adds_to_the_others_in_the_base(bench, wanted):
    unit, base, scheme = wanted[0][0], "W3A16_g32", "W8A16_g32"
    (found,) = InContext(base=base)(bench, [(unit, scheme)])

    def kl(of_the_unit: str) -> float:
        model, reference = load_model(bench.bank.path), load_model(bench.bank.path)
        for tensor in bench.bank.survey.by_tensor:
            weight = bench.bank.weight(tensor, of_the_unit if tensor in unit.tensors else base)
            model.get_submodule(tensor.removesuffix(".weight")).weight.data.copy_(weight)
        texts = bench.trials.texts
        return evaluate_tokens(
            model, texts.tokens, reference=reference, settings=texts.settings
        ).comparison.kl_nats.value  # fmt: skip

    assert found.value == pytest.approx(kl(scheme) - kl("W16A16"), rel=1e-9)
    assert found.lower < found.value < found.upper


def test_in_context_around_the_untouched_model_is_direct(bench, wanted):
    alone, around = Direct()(bench, wanted[:2]), InContext(base="W16A16")(bench, wanted[:2])
    for one, other in zip(alone, around, strict=True):
        assert other.value == pytest.approx(one.value, rel=1e-12)
        assert (other.lower, other.upper) == pytest.approx((one.lower, one.upper), rel=1e-6)


def test_in_context_takes_a_base_by_preference_or_by_linear(tiny_llama, token_file, tmp_path):
    schemes = ("W4A16_g64", "W4A16_g32", "W8A16_g32")  # down_proj is 96 wide
    with sensing(tiny_llama, token_file, tmp_path, schemes=schemes) as opened:
        bank = opened.bench.bank
        down = {tensor for tensor in bank.survey.by_tensor if "down_proj" in tensor}
        for base in ("", "W4A16_g64, W4A16_g32"):
            mix = InContext(base=base).mix(bank)
            assert {tensor for tensor, s in mix.items() if s == "W4A16_g32"} == down
            assert set(mix) == set(bank.survey.by_tensor)
        assert InContext(base=mix).mix(bank) == mix
        with pytest.raises(RecipeError, match="W2A16 is not among the schemes of the table"):
            InContext(base="W2A16").mix(bank)
        with pytest.raises(RecipeError, match=r"down_proj.* cannot take W4A16_g64; name another"):
            InContext(base="W4A16_g64").mix(bank)
        with pytest.raises(RecipeError, match=r"too many or too few: model.*down_proj"):
            InContext(base={t: s for t, s in mix.items() if t not in down}).mix(bank)


def test_in_context_is_measured_again_around_another_base(opened, monkeypatch):
    few = opened.wanted()[:2]  # one unit in two schemes
    monkeypatch.setattr(type(opened), "wanted", lambda self: few)
    passes = lambda: opened.bench.trials.passes
    before = passes()
    first = opened.estimate("in_context", {"base": "W8A16_g32"})
    cost, before = passes() - before, passes()
    again = opened.estimate("in_context", {"base": "W8A16_g32"})
    assert passes() == before and [r.key for r in again] == [r.key for r in first]
    assert len(first) == 2 and cost == pytest.approx(3)
    base = dict.fromkeys(opened.bench.bank.survey.by_tensor, "W8A16_g32")
    moved = opened.estimate("in_context", {"base": base | {Q: "W3A16_g32"}})
    assert {r.key for r in moved}.isdisjoint(r.key for r in first)
