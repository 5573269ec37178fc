"""A planned mix against one scheme for all: the loss at equal bits, the bits at equal loss.

    python bench/planned.py [MODEL[=SENSE_TEXT:TEXT] ...] [--uniform W3A16_g128 W4A16_g128 ...]
        [--schemes W3A16_g128,...] [--granularity fused] [--estimator direct] [--set KEY=VALUE ...]
        [--train signround [--sense-train]] [--shares 1 0.96 0.92 0.88]
        [--sense-tokens 4096] [--split-at REGEX] [--keep FOLDER]

Units are sensed on one text; then for each uniform scheme the plans of the least predicted loss
with 1, 0.96, ... of its bits a weight (all that is stored counted) are built like the uniform one,
by the same quantizer (and trainer) on the same calibration text, and measured on the same text,
which no search has seen. Where the loss of the plans, drawn against their bits (log KL, straight
between two), is that of the uniform scheme are the bits at equal KL. Intervals are 95 %, of
documents drawn anew, the same ones for both sides. A uniform scheme may be a list, as
W3A16_g32,W3A16: each unit takes the first whose groups divide its rows. What the plans may use and
the uniform schemes are of one kind unless the options say otherwise: both are in the heading.

MODEL=SENSE_TEXT:TEXT takes calibration and sensitivities from the one file and measures on the
other; without it these are stdlib and stdlib-heldout.
"""

import argparse
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pennyweight.allocate.base import Assignment, Problem
from pennyweight.cli.options import sense_options
from pennyweight.core import BudgetError, Progress
from pennyweight.evaluate import Settings, score_documents
from pennyweight.model.load import load_model
from pennyweight.model.workers import start_workers
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Calibrate, Training
from pennyweight.study.bank import Ingredients
from pennyweight.study.planning.budget import Budget
from pennyweight.study.planning.planner import Planner
from pennyweight.study.planning.wish import Wish
from pennyweight.study.sensitivity.sense import Places, sense
from pennyweight.study.sensitivity.sensing import Request
from pennyweight.study.trial import Reference, joined, logits_of

UNIFORM = ["W3A16_g128", "W3A16_g32", "W4A16_g128", "W4A16_g32"]
SCHEMES = (
    "W2A16_g32,W2A16_g16,W3A16_g128,W3A16_g64,W3A16_g32,W4A16_g128,W4A16_g64,W4A16_g32,"
    "W5A16_g128,W6A16_g128,W8A16_g128"
)
RESAMPLES = 2000


@dataclass(frozen=True)
class Built:
    """What was built and measured."""

    bits: float  # a weight
    kl: Tensor  # [documents], float64, summed over the tokens of each
    tokens: Tensor  # [documents]


def main() -> None:
    asked = options()
    with tempfile.TemporaryDirectory() as temporary:
        for name in asked.models:
            model, _, files = name.partition("=")
            folder = (asked.keep or Path(temporary)) / Path(model).name
            folder.mkdir(parents=True, exist_ok=True)
            planner = opened(asked, model, files.split(":") if files else None, folder)
            print(f"\n{Path(model).name}: {', '.join(planner.table.schemes)}; {asked.granularity}")
            print(
                f"units by {planner.table.estimator} on {planner.table.settings['tokens']} tokens; "
                f"measured on {planner.builder.texts.scored} others\n"
            )
            print("| | bits | KL, nats (95 %) | KL against uniform | bits at equal KL |")
            print("| --- | ---: | --- | --- | --- |", flush=True)
            Comparing(planner, folder, asked.threads).rows(asked.uniform, asked.shares)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["pylm"], help="MODEL or MODEL=SENSE:TEXT")
    parser.add_argument("--uniform", nargs="+", default=UNIFORM)
    parser.add_argument("--schemes", default=SCHEMES)
    parser.add_argument("--shares", nargs="+", type=float, default=[1, 0.96, 0.92, 0.88])
    parser.add_argument("--granularity", default="fused")
    parser.add_argument("--estimator", default="direct")
    parser.add_argument("--set", dest="overrides", nargs="*", help="estimator.KEY=VALUE, as sense")
    parser.add_argument("--quantizer", default="gptq")
    parser.add_argument("--train", nargs="*", default=[], help="trainers, of both sides")
    parser.add_argument("--sense-train", action="store_true", help="as `plan` has it")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sense-tokens", type=int, default=4096)
    parser.add_argument("--max-tokens", type=int, default=16384)
    parser.add_argument("--split-at")
    parser.add_argument("--keep", type=Path, help="a folder where tables and banks stay")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def opened(asked: argparse.Namespace, model: str, files: list[str] | None, folder: Path) -> Planner:
    """A planner with the table of all schemes, the uniform ones among them."""
    overrides = sense_options(asked.overrides)
    calibrate = Calibrate(samples=asked.samples)
    if files:
        calibrate = replace(calibrate, data=(files[0],), split_at=asked.split_at)
    wish = Wish(
        ingredients=Ingredients(
            model=model, quantizer=asked.quantizer, options=overrides["quantizer"],
            calibrate=calibrate,
        ),
        budget=Budget(name="bits", limit=16.0), granularity=asked.granularity, any_engine=True,
        schemes=tuple(dict.fromkeys(",".join([asked.schemes, *asked.uniform]).split(","))),
        data=(files[1],) if files else ("stdlib-heldout",), split_at=asked.split_at,
        settings=Settings(max_tokens=asked.max_tokens, document_tokens=512),
        sense=folder / f"{asked.granularity}-{asked.estimator}.json",
        train=tuple(Training(name=name) for name in asked.train),
        sense_train=asked.sense_train,
    )  # fmt: skip
    request = Request(
        ingredients=replace(wish.ingredients, train=wish.sensed_train), schemes=wish.schemes,
        granularity=asked.granularity,
        estimator=asked.estimator, options=overrides["estimator"], split_at=asked.split_at,
        data=(files[0],) if files else ("stdlib",),
        settings=Settings(max_tokens=asked.sense_tokens, document_tokens=256),
    )  # fmt: skip
    assert wish.sense is not None
    places = Places(output=wish.sense, bank=folder / "bank", records=folder / "records.sqlite")
    sense(request, places, threads=asked.threads)
    return Planner.open(wish, folder, asked.threads, Progress())


@dataclass(frozen=True)
class Comparing:
    """Builds, measures and prints."""

    planner: Planner
    folder: Path
    threads: int | None

    def rows(self, uniforms: list[str], shares: list[float]) -> None:
        generator = torch.Generator().manual_seed(0)
        for name in uniforms:
            uniform = self.build(self.uniform(name))
            drawn = torch.randint(
                len(uniform.tokens), (RESAMPLES, len(uniform.tokens)), generator=generator
            )
            drawn = torch.cat([torch.arange(len(uniform.tokens))[None], drawn])
            print(f"| uniform {name} | {uniform.bits:.3f} | {interval(kl(uniform, drawn))} | | |")
            plans = []
            for share in shares:
                schemes = self.planned(share * uniform.bits)
                if schemes is None:
                    continue
                plans.append(self.build(schemes))
                ratio = 100 * (kl(plans[-1], drawn) / kl(uniform, drawn) - 1)
                print(
                    f"| planned, {share:g} of its bits | {plans[-1].bits:.3f} | "
                    f"{interval(kl(plans[-1], drawn))} | {interval(ratio, '+.1f')} % | |",
                    flush=True,
                )
            print(f"| equal KL | | | | {equal_kl(uniform, plans, drawn)} |", flush=True)

    def uniform(self, name: str) -> Assignment:
        names = name.split(",")
        return {
            unit.name: next(scheme for scheme in names if scheme in unit.options)
            for unit in self.planner.table.units
        }

    def planned(self, bits: float) -> Assignment | None:
        """None if nothing is so small."""
        size = bits / 8 * self.planner.table.parameters
        problem = Problem(units=self.planner.units, minimise="loss", budget=size)
        try:
            return self.planner.allocator(problem, 0).schemes
        except BudgetError:
            return None

    def build(self, schemes: Assignment) -> Built:
        builder, table = self.planner.builder, self.planner.table
        texts, settings = builder.texts, builder.texts.settings
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            out = Path(folder) / "built"
            quantize(builder.recipe(schemes), out, threads=self.threads)
            logits = logits_of(load_model(out))
            reference = Reference(builder.reference, Path(folder))
            with start_workers(self.threads) as workers:
                parts = workers.map(
                    lambda document: score_documents(
                        logits, [document], context=settings.context or 0, reference=reference
                    ),
                    texts.tokens,
                )
            sums = joined(parts).documents
        stored = sum(unit.options[schemes[unit.name]].stored_bits for unit in table.units)
        return Built(stored / table.parameters, sums.kl.double(), sums.tokens.double())


def kl(built: Built, drawn: Tensor) -> Tensor:
    """Nats a token on each draw of documents, [draws]; the first is of all as they are."""
    return built.kl[drawn].sum(1) / built.tokens[drawn].sum(1)


def equal_kl(uniform: Built, plans: list[Built], drawn: Tensor) -> str:
    """Bits of the plan that loses what the uniform scheme does, against its bits, in percent.

    A plan of more bits that loses more is passed over: whoever has the bits takes the better one.
    """
    plans = sorted(plans, key=lambda plan: plan.bits)
    bits = [plan.bits for plan in plans]
    losses = torch.stack([kl(plan, drawn).log() for plan in plans])  # [plans, draws]
    losses, wanted = losses.cummin(0).values, kl(uniform, drawn).log()
    found = torch.tensor(
        [crossing(bits, losses[:, i].tolist(), wanted[i].item()) for i in range(len(wanted))]
    )
    if math.isnan(found[0]):
        return "not between these plans"
    change = 100 * (found.nan_to_num(math.inf) / uniform.bits - 1)
    end = " or fewer: the smallest plan loses less" if found[0] == bits[0] else ""
    return interval(change, "+.1f") + f" % ({found[0]:.3f} bits{end})"


def crossing(bits: list[float], losses: list[float], wanted: float) -> float:
    """Where falling losses over rising bits pass `wanted`; nan above all, the end below all."""
    if losses[-1] > wanted:
        return math.nan
    for i, loss in enumerate(losses):
        if loss <= wanted:
            if i == 0:
                return bits[0]
            share = (losses[i - 1] - wanted) / (losses[i - 1] - loss)
            return bits[i - 1] + share * (bits[i] - bits[i - 1])
    raise AssertionError("the last is at most wanted")


def interval(draws: Tensor, form: str = ".5f") -> str:
    low, high = torch.quantile(draws[1:], torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    return f"{draws[0].item():{form}} ({low:{form}} to {high:{form}})"


if __name__ == "__main__":
    main()
