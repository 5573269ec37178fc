"""Does a plan keep its promise? The loss on fresh text, against the budget it was planned for.

    python bench/budget_promise.py MODEL[:SENSE_TEXT:PLAN_TEXT:FRESH_TEXT] ... [--split-at REGEX]
        [--seeds 0 1 2] [--budgets 'kl<=0.01' 'kl<=0.03'] [--count 100] [--records promise.sqlite]

For each model, seed and budget: sense on one text, plan on a second one, carry the plan out, and
measure on a third. A promise is kept where the measured value is within the budget. The seed
decides the calibration samples and which documents each text is made of. The goal is 93 % of at
least 100.
"""

import argparse
import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path

from pennyweight.api import PennyweightError, Settings, evaluate
from pennyweight.core import BudgetError
from pennyweight.model.text import documents
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Calibrate
from pennyweight.study.bank import Ingredients
from pennyweight.study.planning.budget import parse_budget
from pennyweight.study.planning.planner import plan
from pennyweight.study.planning.wish import Wish

BUDGETS = ("kl<=0.01", "kl<=0.02", "kl<=0.05", "ppl<=1%", "ppl<=3%")


def texts(source: str, split_at: str | None, seed: int, count: int) -> list[list[str]]:
    """Three lists of so many documents of a source, no document in two of them."""
    found = [d.text for d in documents(source, split_at=split_at)]
    random.Random(f"{seed} promise").shuffle(found)
    if len(found) < 3 * count:
        raise SystemExit(f"{source}: {len(found)} documents; expected {3 * count}")
    return [found[i * count : (i + 1) * count] for i in range(3)]


def write(path: Path, passages: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in passages))
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="MODEL or MODEL=TEXT")
    parser.add_argument("--split-at", default=r"<\|endoftext\|>")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    parser.add_argument("--documents", type=int, default=100, help="of each of the three texts")
    parser.add_argument("--document-tokens", type=int, default=128)
    parser.add_argument("--quantizer", default="gptq")
    parser.add_argument("--schemes", default="W4A16_g32,W4A16,W8A16,W16A16")
    parser.add_argument("--any-engine", action="store_true")
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    kept = total = refused = 0
    print("| model | seed | budget | bits | planned: measured (95 %) | fresh | kept |")
    print("| --- | ---: | --- | ---: | --- | ---: | --- |")
    for name in asked.models:
        model, _, source = name.partition("=")
        for seed in asked.seeds:
            with tempfile.TemporaryDirectory() as folder:
                for row in promises(model, source or "stdlib", seed, asked, Path(folder)):
                    print(row[0], flush=True)
                    kept, total = kept + (row[1] is True), total + (row[1] is not None)
                    refused += row[1] is None
    share = f"{kept / total:.1%}" if total else "none"
    print(f"kept {kept} of {total} ({share}); {refused} budgets were refused")


def promises(model: str, source: str, seed: int, asked: argparse.Namespace, folder: Path):
    """(a row, whether the promise was kept or None where the budget was refused) per budget."""
    parts = texts(source, asked.split_at if Path(source).is_file() else None, seed, asked.documents)
    sense, planning, fresh = (
        write(folder / f"{name}.jsonl", part)
        for name, part in zip(("sense", "plan", "fresh"), parts, strict=True)
    )
    settings = Settings(document_tokens=asked.document_tokens)
    calibrate = Calibrate(data=(sense,), samples=32, tokens=128)
    base = Wish(
        ingredients=Ingredients(
            model=model, quantizer=asked.quantizer, calibrate=calibrate, seed=seed
        ),
        budget=parse_budget(asked.budgets[0]), schemes=tuple(asked.schemes.split(",")),
        sense_data=(sense,), data=(planning,), settings=settings, any_engine=asked.any_engine,
    )  # fmt: skip
    for number, text in enumerate(asked.budgets):
        wish = replace(base, budget=parse_budget(text))
        label = f"| {Path(model).name} | {seed} | {text} "
        try:
            planned = plan(
                wish, folder / f"{number}.toml", work=folder / "work", threads=asked.threads
            )
        except BudgetError as error:
            yield f"{label}| - | {error!s:.80} | - | refused |", None
            continue
        out = folder / f"out-{number}"
        quantize(planned.recipe, out, threads=asked.threads)
        found = evaluate(out, against=model, data=(fresh,), settings=settings)
        loss, measured = wish.budget.observed(found).value, planned.chosen.measured.loss
        inside = loss <= wish.budget.limit
        yield (
            (
                f"{label}| {planned.chosen.figures.bits_per_weight:.3f} | {measured.value:.5g} "
                f"({measured.low:.5g} to {measured.high:.5g}) | {loss:.5g} | "
                f"{'yes' if inside else 'NO'} |"
            ),
            inside,
        )


if __name__ == "__main__":
    try:
        main()
    except PennyweightError as error:
        raise SystemExit(f"error: {error}") from None
