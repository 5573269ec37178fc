"""A planned mix of schemes serves as we compute it: the promise of `plan` is a servable plan.

Bounds are those of test_serving: W4A16 and 16 bits by the mean of all tokens. W8A8 is left out of
the mix that is held to that bound, as its activations flip; it has a mix of its own, held to the
bound of W8A8 in bf16.
"""

import pytest
import torch

from pennyweight.evaluate import Settings
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Calibrate
from pennyweight.study.bank import Ingredients
from pennyweight.study.planning.budget import parse_budget
from pennyweight.study.planning.pins import parse_pin
from pennyweight.study.planning.planner import plan
from pennyweight.study.planning.wish import Wish
from tests.vllm.test_serving import (
    MODEL,
    Measured,
    ask_vllm,
    assert_inputs_serve,
    assert_weights_serve,
    make_prompts,
    prompt_logprobs,
)  # fmt: skip

pytestmark = pytest.mark.vllm

MIXES = {
    "weights": ("W4A16_g128", "W4A16_g32", "W16A16"),
    "inputs": ("W4A16_g128", "W8A8", "W16A16"),
}
BITS = {"weights": 4.8, "inputs": 6.5}
PIN = "*.0.self_attn.o_proj.weight=W16A16"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("plan")
    paths = {"BF16": MODEL}
    for name, schemes in MIXES.items():
        wish = Wish(
            ingredients=Ingredients(model=str(MODEL), calibrate=Calibrate(samples=32, tokens=256)),
            budget=parse_budget(f"bits<={BITS[name]}"), schemes=schemes,
            pins=(parse_pin(PIN),),
            settings=Settings(max_tokens=2048, document_tokens=256),
        )  # fmt: skip
        found = plan(wish, folder / f"{name}.toml")
        assert set(found.chosen.schemes.values()) == set(schemes)  # else it is no mix of them
        paths[name] = quantize(found.recipe, folder / name).path
    prompts, runs = make_prompts(), [(name, "bfloat16") for name in paths]
    theirs = ask_vllm(folder, {run: paths[run[0]] for run in runs}, prompts)
    ours = {run: prompt_logprobs(paths[run[0]], torch.bfloat16, prompts) for run in runs}
    return Measured(ours, theirs)


def test_a_mix_of_weights_serves_as_we_compute_it(measured: Measured) -> None:
    assert_weights_serve(measured, "weights")


def test_a_mix_with_rounded_inputs_serves(measured: Measured) -> None:
    assert_inputs_serve(measured, "inputs")
