"""Every method at about 4, 3 and 2 bits: perplexity and KL divergence, bits honestly counted.

    python bench/methods.py [MODEL ...] [--bits 4 3 2] [--only gptq,awq]
        [--calibrate TEXT --evaluate TEXT --split-at REGEX]

One protocol for all: the same calibration tokens, the same evaluation documents, every option at
its default, one seed. Bits are those of everything stored for the quantized linears: codes, every
level of scale, zero points, tables, kept weights and where they are, factors of low rank. A linear
whose width no group divides gets one scale per row.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from side_by_side import markdown, row

from pennyweight.api import Calibrate, PennyweightError, Recipe, Settings, evaluate, quantize
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.resolve import resolve_model
from pennyweight.model.skeleton import Skeleton
from pennyweight.pipeline.recipe import parse_recipe
from pennyweight.pipeline.survey import survey


@dataclass(frozen=True)
class Entry:
    """A method: the scheme by bits ({b} bits, {g} the group of the model, {s} a sixteenth of what
    divides, for scales that 16 groups share), how it is filled, and what learns afterwards."""

    label: str
    scheme: str
    quantizer: str
    options: dict[str, Any] = field(default_factory=dict)
    transform: str | None = None
    bits: tuple[int, ...] = (4, 3, 2)
    train: str | None = None


GROUPED, ASYMMETRIC = "W{b}A16{g}", "W{b}A16{g}_asym"
ENTRIES = (
    Entry("RTN", ASYMMETRIC, "rtn"),
    Entry("clipped RTN", ASYMMETRIC, "mse_clip"),
    Entry("HQQ", ASYMMETRIC, "hqq"),
    Entry("AWQ + clipping", ASYMMETRIC, "mse_clip", transform="awq"),
    Entry("GPTQ", ASYMMETRIC, "gptq"),
    Entry("AWQ + GPTQ", ASYMMETRIC, "gptq", transform="awq"),
    Entry("SignRound", ASYMMETRIC, "rtn", train="signround"),
    Entry("GWQ 1 %, RTN", ASYMMETRIC, "gwq"),
    Entry("GWQ 1 %, GPTQ", ASYMMETRIC, "gwq", {"residual": "gptq"}),
    Entry("SpQR", "W{b}A16{s}_bilevel", "spqr"),
    Entry("OWQ 1 %", ASYMMETRIC, "owq", {"share": 0.01}),
    Entry("LoRC, rank 4", ASYMMETRIC, "lorc", {"rank": 4}),
    Entry("LQER, rank 4", ASYMMETRIC, "lqer", {"rank": 4}),
    Entry("QERA, rank 4", ASYMMETRIC, "qera", {"rank": 4}),
    Entry("QERA, rank 4, GPTQ", ASYMMETRIC, "qera", {"rank": 4, "base": "gptq"}),
    Entry("k-means", "W{b}A16_table", "kmeans"),
    Entry("SqueezeLLM", "W{b}A16_table", "squeezellm"),
    Entry("HIGGS", "W{b}A16_higgs{g}", "higgs"),
    Entry("NF4", "W4A16_nf4{g}", "rtn", bits=(4,)),
    Entry("MXFP4", "MXFP4A16", "rtn", bits=(4,)),
    Entry("NVFP4", "NVFP4A16", "rtn", bits=(4,)),
    Entry("NVFP4, GPTQ", "NVFP4A16", "gptq", bits=(4,)),
)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    calibrate: str
    evaluate: str
    split_at: str | None
    samples: int
    tokens: int
    max_tokens: int

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Protocol":
        """From the options that `add_options` adds."""
        return cls(
            calibrate=args.calibrate, evaluate=args.evaluate, split_at=args.split_at,
            samples=args.samples, tokens=args.tokens, max_tokens=args.max_tokens,
        )  # fmt: skip

    @staticmethod
    def add_options(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
        parser.add_argument("--calibrate", default="stdlib")
        parser.add_argument("--evaluate", default="stdlib-heldout")
        parser.add_argument("--split-at")
        parser.add_argument("--samples", type=int, default=32)
        parser.add_argument("--tokens", type=int, default=512)
        parser.add_argument("--max-tokens", type=int, default=max_tokens)

    @property
    def calibration(self) -> Calibrate:
        return Calibrate(
            data=(self.calibrate,), samples=self.samples, tokens=self.tokens,
            split_at=self.split_at,
        )  # fmt: skip

    def recipe(self, model: str, entry: Entry, bits: int, widths: dict[str, int]) -> Recipe:
        group = next(g for g in (128, 64, 32) if any(w % g == 0 for w in widths.values()))
        ragged = [name for name, width in widths.items() if width % group]
        scheme = entry.scheme.format(b=bits, g=f"_g{group}", s=f"_g{group // 16}")
        rule = {"quantizer": entry.quantizer, "options": entry.options}
        rules = [rule | {"match": name, "scheme": f"W{bits}A16_asym"} for name in ragged]
        if ragged and entry.quantizer in ("kmeans", "squeezellm"):
            rules = []  # a table belongs to a row, and any width will do
        elif ragged and entry.quantizer == "higgs":
            rules = [r | {"quantizer": "rtn", "options": {}} for r in rules]
        return parse_recipe({
            "model": model, "target": "packed", "rule": [*rules, rule | {"scheme": scheme}],
            "transform": [{"name": entry.transform}] if entry.transform else [],
            "train": [{"name": entry.train}] if entry.train else [],
            "calibrate": {"data": [self.calibrate], "samples": self.samples, "tokens": self.tokens,
                          "split_at": self.split_at},
        })  # fmt: skip

    def scores(self, model: str | Path, reference: str | None):
        return evaluate(
            model, against=reference, data=[self.evaluate], split_at=self.split_at,
            settings=Settings(context=self.tokens, document_tokens=self.tokens,
                              max_tokens=self.max_tokens),
        )  # fmt: skip


def widths_of(model: str) -> dict[str, int]:
    """Tensor -> in_features of every linear that can be quantized."""
    skeleton = Skeleton.build(Checkpoint.open(resolve_model(model)))
    return {site.tensor: site.shape[1] for site in survey(skeleton).sites}


def show(interval) -> str:
    return f"{interval.value:.4g} ({interval.low:.4g} to {interval.high:.4g})"


def lines(
    model: str, entries: list[Entry], bits: list[int], protocol: Protocol
) -> Iterator[list[str]]:
    name, widths = Path(model).name, widths_of(model)
    yield [name, "16", "unquantized", "", show(protocol.scores(model, None).perplexity), ""]
    for count in bits:
        for entry in entries:
            if count not in entry.bits:
                continue
            with tempfile.TemporaryDirectory() as folder:
                recipe = protocol.recipe(model, entry, count, widths)
                try:
                    result = quantize(recipe, Path(folder) / "out")
                except PennyweightError as error:
                    print(f"{name}: {entry.label} at {count} bits: {error}", file=sys.stderr)
                    continue
                found = protocol.scores(result.path, model)
                assert found.comparison is not None
                stored = f"{result.proof['size']['bits_per_weight']:.2f}"
            yield [name, stored, entry.label, recipe.rule[-1].scheme, show(found.perplexity),
                   show(found.comparison.kl_nats)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["pylm"])
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--only", help="labels or quantizers, separated by commas")
    Protocol.add_options(parser, max_tokens=20_000)
    args = parser.parse_args()
    wanted = args.only.split(",") if args.only else []
    entries = [e for e in ENTRIES if not wanted or {e.label, e.quantizer} & set(wanted)]
    protocol = Protocol.of(args)
    print(f"{args.samples} x {args.tokens} calibration tokens of {args.calibrate};", end=" ")
    print(f"{args.max_tokens} tokens of {args.evaluate}\n")
    print(markdown(["model", "bits", "method", "scheme", "perplexity", "KL, nats"]), flush=True)
    for model in args.models:
        for line in lines(model, entries, args.bits, protocol):
            print(row(line), flush=True)


if __name__ == "__main__":
    main()
