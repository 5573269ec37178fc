"""What `pennyweight demo` shows: the bundled model before and after."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from pennyweight.core import CheckpointError, Progress
from pennyweight.evaluate import Evaluation, Settings
from pennyweight.model.load import load_model, load_tokenizer
from pennyweight.pipeline.evaluate import evaluate
from pennyweight.pipeline.quantize import Result, quantize
from pennyweight.pipeline.recipe import Calibrate, Recipe, Rule
from pennyweight.pipeline.workdir import PLAN

MODEL = "pylm"
PROMPT = 'def get_value(self, name, default=None):\n    """Return the'
SAMPLE_TOKENS = 96
TEMPERATURE, LIKELY = 0.5, 20  # greedy, a model this small goes round in circles
EVALUATED_TOKENS = 60_000  # of each held-out module the first 2,000: a wide sample in seconds
DOCUMENT_TOKENS = 2_000


@dataclass(frozen=True, kw_only=True)
class Demo:
    result: Result
    evaluation: Evaluation
    before: str
    after: str


def run_demo(output: Path, scheme: str, progress: Progress) -> Demo:
    """Quantize, evaluate against the original, and write a little with both."""
    _clear(output)
    recipe = Recipe(model=MODEL, rule=(Rule(scheme=scheme),), calibrate=Calibrate(samples=64))
    result = quantize(recipe, output, progress=progress)
    progress.say("measuring on modules of the standard library that the model has never seen")
    settings = Settings(max_tokens=EVALUATED_TOKENS, document_tokens=DOCUMENT_TOKENS)
    evaluation = evaluate(output, against=MODEL, settings=settings)
    return Demo(
        result=result,
        evaluation=evaluation,
        before=write(MODEL, PROMPT),
        after=write(output, PROMPT),
    )


def write(model: str | Path, prompt: str) -> str:
    """A prompt and its continuation, drawn at a low temperature, with the same luck each time."""
    loaded, tokenizer = load_model(model), load_tokenizer(model)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    luck = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for _ in range(SAMPLE_TOKENS):  # no cache: a short text of a small model
            logits = loaded(input_ids=ids, use_cache=False).logits[:, -1] / TEMPERATURE
            likely = logits >= logits.topk(LIKELY).values[:, -1:]
            chances = logits.where(likely, -torch.inf).softmax(-1)
            token = torch.multinomial(chances, 1, generator=luck)
            if token.item() == tokenizer.eos_token_id:
                break
            ids = torch.cat((ids, token), 1)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def _clear(output: Path) -> None:
    """Remove what an earlier demo left, and nothing else."""
    if not output.exists():
        return
    plan = output / PLAN
    if not plan.is_file() or json.loads(plan.read_text(encoding="utf-8")).get("model") != MODEL:
        raise CheckpointError(f"{output}: exists and is not the result of a demo; use another -o")
    shutil.rmtree(output)
