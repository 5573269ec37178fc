"""A quantized head is served as we compute it, in the scheme of the blocks and in one of its own.

The bundled model with its head untied, in bfloat16 on both sides, and the bound of test_serving.py.
vLLM has its own class for a head, which the target `Linear` does not mean: a config that names none
would leave it without weights.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Calibrate, Recipe, Rule
from tests.vllm.test_serving import (
    MODEL,
    Measured,
    ask_vllm,
    assert_weights_serve,
    make_prompts,
    prompt_logprobs,
)

pytestmark = pytest.mark.vllm

HEADS = {"same": "W4A16_g128", "own": "W4A16_g64"}


def untied(folder: Path) -> Path:
    shutil.copytree(MODEL, folder)
    tensors = load_file(MODEL / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((MODEL / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("head")
    paths = {"BF16": untied(folder / "BF16")}
    for name, scheme in HEADS.items():
        recipe = Recipe(
            model=str(paths["BF16"]), calibrate=Calibrate(samples=32, tokens=256), engine="vllm",
            rule=(Rule(match="lm_head.weight", scheme=scheme), Rule(scheme="W4A16_g128")),
        )  # fmt: skip
        paths[name] = quantize(recipe, folder / name, threads=2).path
    prompts, runs = make_prompts(), [(name, "bfloat16") for name in paths]
    theirs = ask_vllm(folder, {run: paths[run[0]] for run in runs}, prompts)
    ours = {run: prompt_logprobs(paths[run[0]], torch.bfloat16, prompts) for run in runs}
    return Measured(ours, theirs)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_serves_as_we_compute_it(measured: Measured, name: str) -> None:
    assert_weights_serve(measured, name)
