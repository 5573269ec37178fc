"""The rows of bench/methods.py on one screen: KL divergence of every method, by model and width.

    python bench/methods_short.py docs/results.md

Bits a weight stand beside a loss where a method stores over 0.05 more than plain rounding.
"""

import sys
from collections import defaultdict
from pathlib import Path

from side_by_side import markdown

BASE = "RTN"
HEAD = "| model | bits | method | scheme |"
MORE = 0.05  # bits


def rows(text: str) -> dict[str, dict[tuple[str, int], tuple[float, str]]]:
    """Method -> (model, width) -> (bits, KL), of the first table."""
    found: dict[str, dict[tuple[str, int], tuple[float, str]]] = defaultdict(dict)
    lines = text[text.index(HEAD) :].splitlines()
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        model, bits, method, scheme, _, kl = (cell.strip() for cell in line.strip("|").split("|"))
        if kl:
            found[method][model, width_of(scheme)] = float(bits), kl.split()[0]
    return found


def width_of(scheme: str) -> int:
    """Bits of a code: all schemes of the table are W<bits>... or a 4-bit float."""
    return int(scheme[1]) if scheme.startswith("W") else 4


def cell(mine: tuple[float, str] | None, base: tuple[float, str]) -> str:
    if mine is None:
        return ""
    bits, kl = mine[0], f"{float(mine[1]):.3g}"
    return kl if bits <= base[0] + MORE else f"{kl} ({bits:.2f})"


def main() -> None:
    found = rows(Path(sys.argv[1]).read_text(encoding="utf-8"))
    places = list(found[BASE])
    head = ["method", *(f"{model}, {width}" for model, width in places)]
    print(
        markdown(
            head,
            [
                [method, *(cell(each.get(place), found[BASE][place]) for place in places)]
                for method, each in found.items()
            ],
        )
    )


if __name__ == "__main__":
    main()
