"""Perplexity after GPTQ and after rounding: ours against llm-compressor's.

    python bench/gptq_quality.py [MODEL ...] [--schemes W4A16 W3A16_g32 ...]
        [--calibrate TEXT --evaluate TEXT --split-at REGEX]

By default the bundled model, on Python's library. Each tool has its own defaults, apart from what
the scheme says; both calibrate on the same token ids, and one evaluator judges both. The peer's
weights are unpacked by the peer itself, so that the evaluator reads plain tensors.
The last column is the excess in nats a token over the unquantized model, ours divided by the
peer's.
"""

import argparse
import itertools
import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from side_by_side import PEER_NAME, Job, markdown, measure, require_peer, row

import pennyweight
from pennyweight.model.load import load_tokenizer
from pennyweight.model.text import calibration_samples

PYLM = Path(pennyweight.__file__).parent / "pylm"
THREADS = 1  # the models are small: more threads would only wait for each other
SCHEMES = ["W4A16", "W4A16_g128", "W3A16", "W3A16_g128", "W3A16_g32"]


@dataclass(frozen=True, kw_only=True)
class Texts:
    calibrate: str
    evaluate: str
    split_at: str | None
    samples: int
    tokens: int
    max_tokens: int

    def write_tokens(self, model: Path, path: Path) -> Path:
        """The same rows for both tools; they only shuffle or keep them."""
        found = calibration_samples(
            [self.calibrate],
            load_tokenizer(model),
            samples=self.samples,
            tokens=self.tokens,
            seed=0,
            split_at=self.split_at,
        )
        path.write_text(json.dumps(found.ids.tolist()))
        return path

    def perplexity(self, model: Path) -> dict[str, float]:
        """Value and the ends of its 95 % interval."""
        command = [sys.executable, "-m", "pennyweight", "eval", str(model), "--json"]
        command += ["--data", self.evaluate, "--context", str(self.tokens)]
        command += ["--document-tokens", str(self.tokens), "--max-tokens", str(self.max_tokens)]
        command += ["--split-at", self.split_at] if self.split_at else []
        return json.loads(measure(command, THREADS).stdout)["perplexity"]


def show(found: dict[str, float]) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def compare(model: Path, scheme: str, quantizer: str, texts: Texts) -> tuple[dict, dict]:
    """Perplexity of our result and of the peer's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = texts.write_tokens(model, folder / "tokens.json")
        job = Job(model=model, scheme=scheme, quantizer=quantizer, tokens=tokens, threads=THREADS)
        measure(job.ours(folder / "ours"), THREADS)
        measure(job.peer(folder / "peer", dense=folder / "dense"), THREADS)
        return texts.perplexity(folder / "ours"), texts.perplexity(folder / "dense")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="*", default=[PYLM])
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--quantizers", nargs="+", choices=["gptq", "rtn"], default=["gptq", "rtn"])
    parser.add_argument("--calibrate", default="stdlib")
    parser.add_argument("--evaluate", default="stdlib-heldout")
    parser.add_argument("--split-at")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=60_000)
    args = parser.parse_args()
    require_peer()
    texts = Texts(
        calibrate=args.calibrate,
        evaluate=args.evaluate,
        split_at=args.split_at,
        samples=args.samples,
        tokens=args.tokens,
        max_tokens=args.max_tokens,
    )
    print(f"{args.samples} x {args.tokens} calibration tokens of {args.calibrate};", end=" ")
    print(f"perplexity on {args.max_tokens} tokens of {args.evaluate}\n")
    columns = ["model", "scheme", "quantizer", "ours", PEER_NAME, f"excess, ours / {PEER_NAME}"]
    print(markdown(columns), flush=True)
    for model in args.models:
        dense = texts.perplexity(model)
        print(row([model.name, "unquantized", "", show(dense), show(dense), ""]), flush=True)
        for scheme, quantizer in itertools.product(args.schemes, args.quantizers):
            ours, peer = compare(model, scheme, quantizer, texts)
            values = [found["value"] for found in (ours, peer, dense)]
            excess = math.log(values[0] / values[2]) / math.log(values[1] / values[2])
            numbers = [show(ours), show(peer), f"{excess:.2f}"]
            print(row([model.name, scheme, quantizer, *numbers]), flush=True)


if __name__ == "__main__":
    main()
