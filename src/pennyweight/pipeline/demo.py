"""What `pennyweight demo` shows of each version of the bundled model: its measurements and how it
writes."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from pennyweight.core import CheckpointError, Progress
from pennyweight.evaluate import Evaluation, Settings
from pennyweight.model.load import load_model, load_tokenizer
from pennyweight.model.text import documents
from pennyweight.model.writer import write_text
from pennyweight.pipeline.evaluate import evaluate
from pennyweight.pipeline.quantize import Result, quantize
from pennyweight.pipeline.recipe import Calibrate, Recipe, Rule

MODEL = "pylm"
HELD_OUT = "stdlib-heldout"
PROMPT = 'def get_value(self, name, default=None):\n    """Return the'
SAMPLE_TOKENS = 96
TEMPERATURE, LIKELY = 0.5, 20  # greedy, a model this small goes round in circles
EVALUATED_TOKENS = 60_000  # of each held-out module the first 2,000: a wide sample in seconds
DOCUMENT_TOKENS = 2_000
UNIFORM, PLANNED = "uniform", "planned"  # folders in that of the demo
MEASURING, PLANNING = "measuring.jsonl", "planning.jsonl"  # every second held-out module each
CALIBRATE = Calibrate(samples=64)


@dataclass(frozen=True, kw_only=True)
class Version:
    """A quantized model of the demo."""

    title: str
    result: Result
    evaluation: Evaluation
    writes: str


@dataclass(frozen=True, kw_only=True)
class Demo:
    folder: Path
    original_writes: str
    versions: tuple[Version, ...]
    plan: Path | None = None  # of the planned version


def begin(output: Path) -> None:
    """An empty folder with two texts in it: a plan is not judged on what it was chosen by."""
    _clear(output)
    output.mkdir(parents=True, exist_ok=True)
    modules = [document.text for document in documents(HELD_OUT)]
    for name, mine in ((MEASURING, modules[::2]), (PLANNING, modules[1::2])):
        lines = (json.dumps({"text": text}) for text in mine)
        write_text(output / name, "\n".join(lines) + "\n")


def uniform_version(output: Path, scheme: str, progress: Progress) -> Version:
    recipe = Recipe(model=MODEL, rule=(Rule(scheme=scheme),), calibrate=CALIBRATE)
    return seen(output, scheme, quantize(recipe, output / UNIFORM, progress=progress), progress)


def seen(output: Path, title: str, result: Result, progress: Progress) -> Version:
    """Measure what was made against the original, and let it write."""
    progress.say("measuring on modules of the standard library that the model has never seen")
    settings = Settings(max_tokens=EVALUATED_TOKENS, document_tokens=DOCUMENT_TOKENS)
    data = (str(output / MEASURING),)
    evaluation = evaluate(result.path, against=MODEL, data=data, settings=settings)
    writes = write(result.path, PROMPT)
    return Version(title=title, result=result, evaluation=evaluation, writes=writes)


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
    """Remove what an earlier demo left, finished or not, and nothing else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MEASURING).is_file():
        raise CheckpointError(f"{output}: exists and is not the result of a demo; use another -o")
    shutil.rmtree(output)
