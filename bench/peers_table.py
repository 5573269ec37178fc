"""Our best methods beside other tools, at the same bits, on the same tokens and texts.

    python bench/peers_table.py [MODEL ...] [--bits 4 3 2] [--peers hqq gptqmodel ...]
        [--calibrate TEXT --evaluate TEXT --split-at REGEX]

Each peer runs in its own environment (`make peers`), at its defaults, on our calibration token ids
and decodes its own weights; one evaluator judges all. Bits are those of everything stored for the
quantized linears. Peers that take no data ignore it. Of ours, beside uniform schemes, the plan of
the least loss with as many bits as uniform GPTQ takes, searched on the calibration text alone, by
GPTQ and with the same schemes by SignRound.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from methods import ENTRIES, Protocol, lines, show, widths_of
from side_by_side import ROOT, last_json, markdown, row

from pennyweight.api import Recipe, Settings, Wish, plan, quantize
from pennyweight.model.load import load_tokenizer
from pennyweight.model.resolve import resolve_model
from pennyweight.model.text import calibration_samples
from pennyweight.pipeline.recipe import Training
from pennyweight.study.bank import Ingredients
from pennyweight.study.planning.budget import Budget


@dataclass(frozen=True)
class Peer:
    name: str
    environment: str
    script: str

    @property
    def python(self) -> Path:
        return ROOT / ".venv-peers" / self.environment / "bin" / "python"

    def run(self, model: str, dense: Path, bits: float, group: int, tokens: Path) -> float:
        """Writes what it made of the model to `dense`; returns bits a weight."""
        command = [
            self.python,
            ROOT / "bench" / "peers" / self.script,
            resolve_model(model).resolve(),
            dense,
        ]
        command += ["--bits", bits, "--group", group, "--calibrate", tokens]
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=dense.parent,  # some leave logs there
        )  # fmt: skip
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise RuntimeError(f"{self.name}: {' '.join(last)}")
        return last_json(done.stdout)["bits_per_weight"]


PEERS = (
    Peer("llm-compressor GPTQ", "llmcompressor", "llmcompressor_dense.py"),
    Peer("GPTQModel GPTQ", "gptqmodel", "gptqmodel_gptq.py"),
    Peer("auto-round", "auto_round", "auto_round_tuned.py"),
    Peer("neural-compressor AWQ", "neural_compressor", "neural_compressor_awq.py"),
    Peer("HQQ", "hqq", "hqq_rounding.py"),
    Peer("llama.cpp K-quants", "llama_cpp", "llama_cpp_k_quants.py"),
)
OURS = ("GPTQ", "AWQ + GPTQ", "OWQ 1 %")
HALF_DIGIT = 0.005  # the bits in a row are rounded


def write_tokens(path: Path, model: str, protocol: Protocol) -> None:
    """The calibration tokens as the peers' scripts read them."""
    found = calibration_samples(
        [protocol.calibrate], load_tokenizer(resolve_model(model)), samples=protocol.samples,
        tokens=protocol.tokens, seed=0, split_at=protocol.split_at,
    )  # fmt: skip
    path.write_text(json.dumps(found.ids.tolist()))


def peer_lines(model: str, bits: list[int], peers: list[Peer], protocol: Protocol) -> Iterator:
    group = group_of(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = folder / "tokens.json"
        write_tokens(tokens, model, protocol)
        for count in bits:
            for peer in peers:
                dense = folder / f"{peer.environment}-{count}"
                try:
                    stored = peer.run(model, dense, count, group, tokens)
                except RuntimeError as error:
                    print(f"{model} at {count} bits: {error}", file=sys.stderr, flush=True)
                    continue
                scores = protocol.scores(dense, model)
                assert scores.comparison is not None
                yield [Path(model).name, f"{stored:.2f}", peer.name, f"{count} bits, g{group}",
                       show(scores.perplexity), show(scores.comparison.kl_nats)]  # fmt: skip


def schemes_for(model: str) -> tuple[str, ...]:
    """What a plan may mix: 2 to 6 bits in the model's groups, small groups at the usual widths, and
    whole rows where a width has no groups."""
    group, widths = group_of(model), widths_of(model).values()
    rows = ("",) if any(width % group for width in widths) else ()
    found = [f"W{bits}A16{size}_asym" for bits in (2, 3, 4, 5, 6) for size in (*rows, f"_g{group}")]
    return (*found, "W3A16_g32_asym", "W4A16_g32_asym", "W8A16_asym")


def planned_recipe(
    model: str, bits: float, schemes: tuple[str, ...], protocol: Protocol, work: Path,
    granularity: str = "fused",
) -> Recipe:  # fmt: skip
    """work: what was measured for one width serves the next."""
    wish = Wish(
        ingredients=Ingredients(model=model, calibrate=protocol.calibration),
        budget=Budget(name="bits", limit=bits), schemes=schemes, granularity=granularity,
        any_engine=True,
        sense_data=(protocol.calibrate,), data=(protocol.evaluate,), split_at=protocol.split_at,
        settings=Settings(max_tokens=8192, document_tokens=512),
    )  # fmt: skip
    return plan(wish, work / f"{bits}.toml", work=work / "work").recipe


def trained(recipe: Recipe) -> Recipe:
    """The same schemes by SignRound."""
    rules = tuple(replace(rule, quantizer="rtn", options={}) for rule in recipe.rule)
    return replace(recipe, rule=rules, train=(Training(name="signround"),))


def built(recipe: Recipe, protocol: Protocol) -> tuple[float, list[str]]:
    """Bits a weight as stored; perplexity and KL."""
    with tempfile.TemporaryDirectory() as folder:
        result = quantize(recipe, Path(folder) / "out")
        scores = protocol.scores(result.path, recipe.model)
    assert scores.comparison is not None
    bits = result.proof["size"]["bits_per_weight"]
    return bits, [show(scores.perplexity), show(scores.comparison.kl_nats)]


def planned_lines(
    model: str, bits: float, protocol: Protocol, work: Path, *, train: bool
) -> Iterator[list[str]]:
    recipe = planned_recipe(model, bits, schemes_for(model), protocol, work)
    recipes = {"GPTQ": recipe} | ({"SignRound": trained(recipe)} if train else {})
    for name, each in recipes.items():
        stored, figures = built(each, protocol)
        yield [Path(model).name, f"{stored:.2f}", f"planned, {name}", "mixed", *figures]


def our_lines(
    model: str, bits: list[int], more: list[float], protocol: Protocol
) -> Iterator[list[str]]:
    """more: bits a weight to plan for besides those of uniform GPTQ."""
    ours = [entry for entry in ENTRIES if entry.label in OURS]
    uniform = []
    for line in lines(model, ours, bits, protocol):
        yield line
        uniform += [float(line[1])] if line[2] == "GPTQ" else []
    with tempfile.TemporaryDirectory() as name:
        for stored in (*uniform, *more):
            limit = stored + HALF_DIGIT
            yield from planned_lines(model, limit, protocol, Path(name), train=stored in uniform)


def group_of(model: str) -> int:
    widths = widths_of(model).values()
    return next(g for g in (128, 64, 32) if any(w % g == 0 for w in widths))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["pylm"])
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--peers", nargs="*", choices=[p.environment for p in PEERS])
    parser.add_argument(
        "--plan-bits", type=float, nargs="+", default=[], help="more bits to plan for: a peer's"
    )
    parser.add_argument("--peers-only", action="store_true", help="no rows of ours")
    Protocol.add_options(parser, max_tokens=10_000)
    args = parser.parse_args()
    peers = [p for p in PEERS if args.peers is None or p.environment in args.peers]
    missing = [p.environment for p in peers if not p.python.exists()]
    if missing:
        raise SystemExit(f"run `make peers` first: {', '.join(missing)} are not there")
    protocol = Protocol.of(args)
    print(markdown(["model", "bits", "method", "scheme", "perplexity", "KL, nats"]), flush=True)
    for model in args.models:
        for line in (
            () if args.peers_only else our_lines(model, args.bits, args.plan_bits, protocol)
        ):
            print(row(line), flush=True)
        for line in peer_lines(model, args.bits, peers, protocol):
            print(row(line), flush=True)


if __name__ == "__main__":
    main()
