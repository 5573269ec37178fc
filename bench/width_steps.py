r"""What a plan could save if there were formats between the widths.

    pennyweight sense pylm --granularity matmul --samples 32 --max-tokens 4096 -o sense.json \
        --document-tokens 256 --schemes W2A16_g128_asym,W3A16_g128_asym,W4A16_g128_asym,...
    python bench/width_steps.py sense.json [--uniform W3A16_g128_asym] [--steps 1 2 4]

Between two schemes of a table, ordered by their bits, the loss of each unit is drawn straight (log
loss over bits) and cut into 1, 2, 4 steps. By the sums of these losses: the bits of the cheapest
plan that loses what the uniform scheme does, and the loss of the best plan of its bits.
"""

import argparse
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

from pennyweight.allocate.base import Option, Problem, Unit
from pennyweight.allocate.exact import Exact
from pennyweight.formats.schemes import UNTOUCHED
from pennyweight.study.sensitivity.table import Sensitivity, UnitLoss

LEAST = 1e-9  # nats: a loss that has a logarithm


def main() -> None:
    asked = options()
    table = Sensitivity.load(asked.table)
    uniform = [unit.options[asked.uniform] for unit in table.units]
    loss, bits = sum(each.value for each in uniform), sum(each.stored_bits for each in uniform)
    print(f"{asked.uniform}: {bits / table.parameters:.3f} bits, sum of losses {loss:.4g} nats\n")
    print("| steps a width | bits at equal loss | loss at equal bits |")
    print("| ---: | ---: | ---: |")
    for steps in asked.steps:
        units = tuple(Unit(name=u.name, options=tuple(cut(u, steps))) for u in table.units)
        cheapest = Exact()(Problem(units=units, minimise="cost", budget=loss)).cost
        best = Exact()(Problem(units=units, minimise="loss", budget=bits)).loss
        print(
            f"| {steps} | {100 * (cheapest / bits - 1):+.1f} % | {100 * (best / loss - 1):+.1f} % |"
        )


def cut(unit: UnitLoss, steps: int) -> Iterator[Option]:
    """The schemes of a unit, and as many between each two as there are steps."""
    known = [one for name, one in unit.options.items() if name != UNTOUCHED]
    known.sort(key=lambda one: one.stored_bits)
    for number, (low, high) in enumerate(itertools.pairwise(known)):
        ends = [math.log(max(each.value, LEAST)) for each in (low, high)]
        for step in range(steps + (number == len(known) - 2)):
            share = step / steps
            yield Option(
                scheme=f"{number}+{share:g}",
                loss=math.exp((1 - share) * ends[0] + share * ends[1]),
                cost=(1 - share) * low.stored_bits + share * high.stored_bits,
            )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="of `pennyweight sense`")
    parser.add_argument("--uniform", default="W3A16_g128_asym")
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 4])
    return parser.parse_args()


if __name__ == "__main__":
    main()
