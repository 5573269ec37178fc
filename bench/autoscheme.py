"""Our plans beside auto-round's AutoScheme: the same widths to choose from, the same bits.

    python bench/autoscheme.py [MODEL ...] [--bits 3.25 3.5 4.5]
        [--calibrate TEXT --evaluate TEXT --split-at REGEX]

Four rows for each target: what AutoScheme chose, tuned by auto-round; its choice carried out by our
GPTQ, so that the choices can be compared; our plan for no more bits than that, by GPTQ; and our
plan with SignRound in GPTQ's place, the counterpart of the first row. All see the same calibration
tokens, and may give each linear 2, 3, 4, 5, 6 or 8 asymmetric bits in groups of one size.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from methods import Protocol, show
from peers_table import (
    HALF_DIGIT,
    Peer,
    built,
    group_of,
    planned_recipe,
    trained,
    write_tokens,
)  # fmt: skip
from side_by_side import markdown, row

from pennyweight.api import Recipe
from pennyweight.pipeline.recipe import Rule

AUTO_SCHEME = Peer("AutoScheme", "auto_round", "auto_round_scheme.py")
WIDTHS = (2, 3, 4, 5, 6, 8)


def scheme(bits: int, group: int) -> str:
    return f"W{bits}A16_g{group}_asym"


def chosen_recipe(model: str, choice: dict[str, int], protocol: Protocol) -> Recipe:
    """AutoScheme's choice, for our GPTQ."""
    group = group_of(model)
    rules = tuple(
        Rule(match=f"{name}.weight", scheme=scheme(bits, group)) for name, bits in choice.items()
    )
    return Recipe(model=model, rule=rules, target="packed", calibrate=protocol.calibration)


def compared(model: str, target: float, protocol: Protocol, folder: Path) -> Iterator[list[str]]:
    """(bits, who chose, who quantized, perplexity, KL); folder: what was sensed serves again."""
    tokens, dense = folder / "tokens.json", folder / f"dense-{target}"
    write_tokens(tokens, model, protocol)
    bits = AUTO_SCHEME.run(model, dense, target, group_of(model), tokens)
    scores = protocol.scores(dense, model)
    assert scores.comparison is not None
    yield [f"{bits:.2f}", "AutoScheme", "auto-round", show(scores.perplexity),
           show(scores.comparison.kl_nats)]  # fmt: skip
    theirs = chosen_recipe(model, json.loads((dense / "choice.json").read_text()), protocol)
    stored, figures = built(theirs, protocol)
    yield [f"{stored:.2f}", "AutoScheme", "our GPTQ", *figures]
    schemes = tuple(scheme(width, group_of(model)) for width in WIDTHS)
    limit = stored + HALF_DIGIT
    ours = planned_recipe(model, limit, schemes, protocol, folder, granularity="matmul")
    for recipe, by in ((ours, "our GPTQ"), (trained(ours), "our SignRound")):
        stored, figures = built(recipe, protocol)
        yield [f"{stored:.2f}", "our plan", by, *figures]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["pylm"])
    parser.add_argument("--bits", type=float, nargs="+", default=[3.25, 3.5, 4.5])
    Protocol.add_options(parser, max_tokens=20_000)
    args = parser.parse_args()
    if not AUTO_SCHEME.python.exists():
        raise SystemExit("run `make peers` first: auto_round is not there")
    protocol = Protocol.of(args)
    print(markdown(["model", "bits", "chosen by", "quantized by", "perplexity", "KL, nats"]))
    for model in args.models:
        with tempfile.TemporaryDirectory() as folder:
            for target in args.bits:
                for line in compared(model, target, protocol, Path(folder)):
                    print(row([Path(model).name, *line]), flush=True)


if __name__ == "__main__":
    main()
