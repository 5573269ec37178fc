"""Time and memory of GPTQ: ours against llm-compressor's, on the same model, tokens and cores.

    python bench/gptq_speed.py [MODEL] [--layers 2] [--scheme W4A16_g128] [--rounds 3]

Without MODEL, a random checkpoint of TinyLlama's shape is made, cut to a few layers. Tokens are
random too: neither changes how much is computed. The two tools take turns, so that a machine that
slows down slows down both, and each round gives one ratio.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

from make_checkpoint import SHAPES, make_checkpoint
from side_by_side import (
    ALL_THREADS,
    PEER_NAME,
    Job,
    Measured,
    last_json,
    markdown,
    measure,
    mib,
    require_peer,
)


def write_random_tokens(path: Path, model: Path, samples: int, tokens: int) -> Path:
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    draw = random.Random(0)
    rows = [[draw.randrange(vocab) for _ in range(tokens)] for _ in range(samples)]
    path.write_text(json.dumps(rows))
    return path


def run_rounds(job: Job, rounds: int, folder: Path) -> list[tuple[Measured, Measured]]:
    pairs = []
    for number in range(rounds):
        ours = measure(job.ours(folder / f"ours-{number}"), job.threads)
        peer = measure(job.peer(folder / f"peer-{number}"), job.threads)
        pairs.append((ours, peer))
        told = [f"{one.elapsed_s:.1f} s {mib(one.peak_bytes)} MiB" for one in (ours, peer)]
        print(f"round {number + 1}: ours {told[0]}, peer {told[1]}", file=sys.stderr, flush=True)
    return pairs


def show(pairs: list[tuple[Measured, Measured]]) -> str:
    """Medians over the rounds; ratios of each round, median and range, above 1 where we win."""

    def row(name: str, values: list[tuple[float, float]], form) -> list[str]:
        ours, peer = (statistics.median(side) for side in zip(*values, strict=True))
        ratios = sorted(theirs / mine for mine, theirs in values)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        return [name, form(ours), form(peer), spread]

    whole = [(ours.elapsed_s, peer.elapsed_s) for ours, peer in pairs]
    # What each says of itself: ours includes the proof of the written files, the peer's has none.
    inner = [
        (json.loads(ours.stdout)["elapsed_s"], last_json(peer.stdout)["total_s"])
        for ours, peer in pairs
    ]
    memory = [(ours.peak_bytes, peer.peak_bytes) for ours, peer in pairs]
    rows = [
        row("whole process, s", whole, "{:.1f}".format),
        row("load to saved, without imports, s", inner, "{:.1f}".format),
        row("peak memory, MiB", memory, mib),
    ]
    return markdown(["", "ours", PEER_NAME, f"{PEER_NAME} / ours"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--shape", choices=SHAPES, default="llama-1.1b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--scheme", default="W4A16_g128")
    parser.add_argument("--quantizer", choices=["gptq", "rtn"], default="gptq")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=ALL_THREADS)
    args = parser.parse_args()
    require_peer()
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), args.model
        if model is None:
            model = folder / "model"
            make_checkpoint(model, SHAPES[args.shape] | {"layers": args.layers})
        tokens = write_random_tokens(folder / "tokens.json", model, args.samples, args.tokens)
        job = Job(
            model=model,
            scheme=args.scheme,
            quantizer=args.quantizer,
            tokens=tokens,
            threads=args.threads,
        )
        pairs = run_rounds(job, args.rounds, folder)
    which = args.model or f"{args.shape}, {args.layers} layers"
    print(f"{args.quantizer} {args.scheme} of {which}, {args.samples} x {args.tokens} tokens,")
    print(f"{args.threads} threads, {args.rounds} rounds in turn\n")
    print(show(pairs))


if __name__ == "__main__":
    main()
