"""A planned mix against one scheme for all: the loss at equal bits, the bits at equal loss.

    python bench/planned.py [MODEL] [--uniform W3A16_g64 W4A16_g128] [--schemes ...]

For each uniform scheme: the plan of the least loss with as many bits a weight (all that is stored
counted), and the smallest plan whose interval is below the upper end of what the uniform one loses.
Same quantizer, calibration and text for all; the plans are searched on other text.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from pennyweight.core import Progress
from pennyweight.evaluate import Interval, Settings
from pennyweight.pipeline.recipe import Calibrate
from pennyweight.study.bank import Ingredients
from pennyweight.study.planning.budget import Budget
from pennyweight.study.planning.planner import Planned, Planner, plan
from pennyweight.study.planning.wish import Wish

SCHEMES = "W2A16_g32,W3A16_g128,W3A16_g64,W3A16_g32,W4A16_g128,W4A16_g32,W8A16_g128"


def shown(loss: Interval) -> str:
    return f"{loss.value:.5f} ({loss.low:.5f} to {loss.high:.5f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="pylm")
    parser.add_argument("--uniform", nargs="+", default=["W3A16_g64", "W4A16_g128"])
    parser.add_argument("--schemes", default=SCHEMES)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=16384)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    wish = Wish(
        ingredients=Ingredients(model=asked.model, calibrate=Calibrate(samples=asked.samples)),
        budget=Budget(name="bits", limit=16.0),
        schemes=tuple(asked.schemes.split(",")),
        settings=Settings(max_tokens=asked.max_tokens, document_tokens=512),
        any_engine=True,
    )
    print("| plan | bits | KL, nats (95 %) | against uniform |")
    print("| --- | ---: | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for scheme in asked.uniform:
            compare(wish, scheme, Path(folder), asked.threads)


def compare(wish: Wish, scheme: str, folder: Path, threads: int | None) -> None:
    (folder / "work").mkdir(exist_ok=True)
    planner = Planner.open(wish, folder / "work", threads, Progress())
    names = {unit.name: scheme for unit in planner.table.units}
    uniform = planner.build(names, 1.0)
    bits, loss = uniform.figures.bits_per_weight, uniform.measured.kl_nats
    print(f"| uniform {scheme} | {bits:.3f} | {shown(loss)} | |", flush=True)
    same_bits = made(wish, Budget(name="bits", limit=bits), folder, threads)
    kl = same_bits.chosen.measured.kl_nats
    print(
        f"| planned, bits<={bits:.3f} | {same_bits.chosen.figures.bits_per_weight:.3f} | "
        f"{shown(kl)} | KL {kl.value / loss.value - 1:+.1%} |",
        flush=True,
    )
    same_loss = made(wish, Budget(name="kl", limit=loss.high), folder, threads)
    size = same_loss.chosen.figures.bits_per_weight
    print(
        f"| planned, kl<={loss.high:.5f} | {size:.3f} | {shown(same_loss.chosen.measured.kl_nats)} "
        f"| bits {size / bits - 1:+.1%} |",
        flush=True,
    )


def made(wish: Wish, budget: Budget, folder: Path, threads: int | None) -> Planned:
    asked = replace(wish, budget=budget)
    return plan(asked, folder / f"{budget}.toml", work=folder / "work", threads=threads)


if __name__ == "__main__":
    main()
