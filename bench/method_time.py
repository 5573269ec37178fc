"""What each method costs, as a multiple of round-to-nearest and of GPTQ in the same run.

    python bench/method_time.py [--rows 2048 --cols 5632] [--rounds 3] [--only "GPTQ;DGQ"]
    python bench/method_time.py --model DIR [--samples 8 --tokens 256]

One matrix: solving alone, on one core, from statistics that are there already; the values are
random, and none of these methods' time depends on them by much. With --model, the whole command
on a checkpoint (bench/make_checkpoint.py makes the 1.1B shape), passes, gradients and files
included. Rounds go through all methods in turn, so that a machine that slows down slows down all.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gptq_speed import write_random_tokens
from methods import ENTRIES, Entry
from side_by_side import markdown, row

from pennyweight.api import quantize
from pennyweight.core import Serial, Stats
from pennyweight.formats.schemes import parse_scheme
from pennyweight.observe.collect import Collector
from pennyweight.pipeline.recipe import make_quantizer, parse_recipe
from pennyweight.pipeline.solve import solve

BITS, GROUP = 4, 128
TOKENS = 2048
BASES = ("RTN", "GPTQ")
MORE = (
    Entry("DGQ", f"W4A8_dgq_g{GROUP}", "dgq"),
    Entry("QoQ", f"W4A8_dgq_g{GROUP}", "qoq"),
    Entry("QUIK", "W4A16", "quik"),
)


def scheme_of(entry: Entry) -> str:
    return entry.scheme.format(b=BITS, g=f"_g{GROUP}", s=f"_g{GROUP // 16}")


def observed(rows: int, cols: int) -> Stats:
    """Of random inputs, some channels of which are loud; the gradients' sizes are random too."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(TOKENS, cols, generator=draw)
    inputs[:, ::97] *= 20
    fields = ("gram", "absmax", "abs_sum", "square_sum", "least_absmax")
    collector = Collector(frozenset(fields), Serial())
    collector.add([inputs])
    gradient = torch.rand(rows, cols, generator=draw)
    seen = Stats(samples=1, abs_gradient=gradient, squared_gradient=gradient.square())
    return collector.stats().merge(seen)


def solver(entry: Entry, rows: int, cols: int, stats: Stats) -> Callable[[], object]:
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(1)) * 0.02
    quantizer = make_quantizer(entry.quantizer, entry.options, entry.label)
    format = parse_scheme(scheme_of(entry), torch.bfloat16).weight

    def run() -> None:
        stats.forget()  # what another method derived is not a present to this one
        solve(quantizer, weight, format, stats, Serial())

    return run


def command(entry: Entry, model: Path, tokens: Path, size: tuple[int, int]) -> Callable[[], object]:
    rule = {"scheme": scheme_of(entry), "quantizer": entry.quantizer, "options": entry.options}
    recipe = parse_recipe({
        "model": str(model), "target": "packed", "rule": [rule],
        "transform": [{"name": entry.transform}] if entry.transform else [],
        "train": [{"name": entry.train}] if entry.train else [],
        "calibrate": {"data": [str(tokens)], "samples": size[0], "tokens": size[1]},
    })  # fmt: skip

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            quantize(recipe, Path(folder) / "out")

    return run


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def table(seconds: dict[str, list[float]]) -> str:
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    rows = []
    for name, each in seconds.items():
        ratios = [
            statistics.median(a / b for a, b in zip(each, seconds[base], strict=True))
            for base in BASES
        ]
        rows.append([name, f"{medians[name]:.2f}", *(f"{ratio:.2f}" for ratio in ratios)])
    return markdown(["method", "seconds", *(f"/ {base}" for base in BASES)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--cols", type=int, default=5632)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="labels, separated by semicolons")
    args = parser.parse_args()
    wanted = args.only.split(";") if args.only else []
    entries = [e for e in (*ENTRIES, *MORE) if not wanted or e.label in wanted or e.label in BASES]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.model:
            size = (args.samples, args.tokens)
            tokens = write_random_tokens(Path(folder) / "tokens.json", args.model, *size)
            runs = {e.label: command(e, args.model, tokens, size) for e in entries}
        else:
            stats = observed(args.rows, args.cols)
            # Transforms and trainers are no solvers.
            only = [e for e in entries if e.transform is None and e.train is None]
            runs = {e.label: solver(e, args.rows, args.cols, stats) for e in only}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(args.rounds):
            for name, run in runs.items():
                seconds[name].append(timed(run))
                print(row([str(number), name, f"{seconds[name][-1]:.2f}"]), file=sys.stderr)
    print(table(seconds))


if __name__ == "__main__":
    main()
