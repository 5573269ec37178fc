"""GPT-2 keeps its linears as Conv1D, [in, out], and vLLM turns every `.weight` of one that it
loads: int8 weights are stored the same way, packed ones have another name and are not turned.

fp32 on both sides and the bounds of test_serving.py, on a random model: what it is good at does not
matter, and a weight that is turned the wrong way moves every token.
"""

import pytest
import torch

from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Recipe, Rule
from tests.end_to_end.models import VOCAB, build, save
from tests.vllm.test_serving import Measured, ask_vllm, prompt_logprobs, report

pytestmark = pytest.mark.vllm

# Square where attention ends (128 x 128): there a wrong turn shows in the numbers alone.
SHAPE = {"n_embd": 128, "n_head": 4, "initializer_range": 0.1}
RUNS = [("BF16", "float32"), ("W8A8", "float32")]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("gpt2")
    source = save(build("gpt2", **SHAPE), folder / "BF16", dtype=torch.bfloat16)
    recipe = Recipe(model=str(source), rule=(Rule(scheme="W8A8", quantizer="rtn"),))
    paths = {"BF16": source, "W8A8": quantize(recipe, folder / "W8A8", threads=2).path}
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, VOCAB, (24, 10), generator=generator).tolist()
    theirs = ask_vllm(folder, {run: paths[run[0]] for run in RUNS}, prompts)
    ours = {run: prompt_logprobs(paths[run[0]], getattr(torch, run[1]), prompts) for run in RUNS}
    return Measured(ours, theirs)


def test_w8a8_of_conv1d_serves_as_we_compute_it(measured: Measured) -> None:
    difference = measured.difference("W8A8", "float32").quantile(0.25).item()
    bound = 4 * measured.difference("BF16", "float32").max().item()
    effect = measured.effect("W8A8", "float32").quantile(0.25).item()
    report("GPT-2 W8A8 fp32, lower quartile", difference, bound, effect)
    assert difference <= bound
    assert bound < effect / 5
