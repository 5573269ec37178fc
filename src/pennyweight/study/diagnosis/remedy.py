"""What to try next, and why: rules over what a diagnosis measured, the most promising first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pennyweight.evaluate import Interval
from pennyweight.study.diagnosis.pair import Numbers

MOST = 0.5  # of the KL: a part with more of it than this is the cause
FEW = 0.25  # of the weights: so many may well get more bits
ALONE = 0.005  # of neighbours out of order: less is numerical noise, see `rounds_alone`
SMALL_GROUP = 32  # a smaller one costs more in scales than one more bit
LISTED = 6  # names in a sentence


@dataclass(frozen=True, kw_only=True)
class Remedy:
    what: str
    why: str
    recipe: str = ""  # TOML to lay under the recipe; first rules win


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the rules look at; losses are KLs in nats a token."""

    within: bool  # the target is met as it is
    target: str
    whole: Interval
    rest: Interval  # with every part restored
    weights_only: Interval | None  # inputs not rounded; None if none are
    activations_only: Interval | None  # weights exact; None if no input is rounded, or unknown
    cure: tuple[str, ...] | None  # names of parts
    tensors: tuple[str, ...]  # of the cure
    share: float  # of the cure in all weights
    numbers: Mapping[str, Numbers]  # by tensor
    out_of_order: Mapping[str, float]  # by tensor, see `rounds_alone`
    outside: tuple[str, ...]  # parameters outside the blocks that differ
    rewritten: bool


def remedies(found: Findings) -> tuple[Remedy, ...]:
    if found.within:
        return (Remedy(what="Nothing needs to be done.", why=f"{found.target} holds as it is."),)
    return tuple(_remedies(found))


def _remedies(found: Findings) -> Iterator[Remedy]:
    if found.outside and found.rest.value > MOST * found.whole.value:
        yield Remedy(
            what=f"Keep {_names(found.outside)} as in the reference.",
            why=f"With every linear restored a KL of {found.rest.value:.3g} of "
            f"{found.whole.value:.3g} nats is left, and these are what differs besides.",
        )
    if _inputs_rule(found):
        yield _inputs(found)
    if found.cure and found.share <= FEW:
        yield _more_bits(found)
    guilty = [t for t in found.tensors or found.numbers if found.numbers[t].bits != 16]
    alone = [t for t in guilty if found.out_of_order.get(t, 1.0) < ALONE]
    if alone and len(alone) > len(guilty) / 2:
        yield _error_feedback(found, alone)
    yield from _groups(found, guilty)
    if not found.cure or found.share > FEW:
        yield _one_more_bit(found, guilty)


def _inputs_rule(found: Findings) -> bool:
    """Whether rounded inputs are the larger part."""
    if found.activations_only is not None and found.weights_only is not None:
        return found.activations_only.value > found.weights_only.value
    return found.weights_only is not None and found.weights_only.value < MOST * found.whole.value


def _inputs(found: Findings) -> Remedy:
    assert found.weights_only is not None
    said = f"With inputs left exact the KL falls to {found.weights_only.value:.3g} of "
    said += f"{found.whole.value:.3g} nats"
    if found.activations_only is not None:
        said += f"; rounded inputs alone cost {found.activations_only.value:.3g}"
    static = [n.name for n in found.numbers.values() if n.static]
    if static:
        scheme = static[0].replace("_static", "")
        return Remedy(
            what=f"Take the scale of every input from its own token: {scheme} instead of "
            f"{static[0]}.",
            why=f"{said}; one scale fixed for all tokens must span the largest of them.",
            recipe=_rule("*", scheme),
        )
    return Remedy(
        what="Move outliers from the inputs into the weights before rounding, or leave the inputs "
        "in 16 bits.",
        why=f"{said}; scales are by token already, so that channels far above the others are left "
        "as the reason. `pennyweight profile` shows them.",
        recipe='[[transform]]\nname = "smoothquant"',
    )


def _more_bits(found: Findings) -> Remedy:
    many = len(found.tensors)
    rules = [_rule(tensor, _next(found.numbers[tensor])) for tensor in found.tensors]
    return Remedy(
        what=f"More bits for {_names(found.tensors)}.",
        why=f"Restoring {'this tensor' if many == 1 else f'these {many} tensors'}, "
        f"{found.share:.1%} of the weights, is enough for {found.target}, and leaving one out is "
        "not.",
        recipe="\n".join(rules),
    )


def _next(numbers: Numbers) -> str:
    """A scheme with more bits: 8 where there were fewer, else 16."""
    if numbers.bits is None or numbers.bits >= 8 or numbers.activation:
        return "W16A16"
    return "W8A16" + (f"_g{numbers.group_size}" if numbers.group_size else "")


def _error_feedback(found: Findings, alone: Sequence[str]) -> Remedy:
    return Remedy(
        what="Let later weights make up for the errors of earlier ones: gptq instead of rounding "
        "each weight by itself.",
        why=f"The weights of {_names(alone)} are in the order in which plain rounding leaves them.",
        recipe=_rule("*" if len(alone) > LISTED else alone[0], _same(found.numbers[alone[0]]),
                     quantizer="gptq"),
    )  # fmt: skip


def _groups(found: Findings, guilty: Sequence[str]) -> Iterator[Remedy]:
    """Coarse groups of few bits, and groups that were solved in the order they are stored."""
    coarse = [
        t for t in guilty
        if (n := found.numbers[t]).bits is not None and n.bits <= 4
        and (n.group_size is None or n.group_size > SMALL_GROUP)
    ]  # fmt: skip
    if coarse:
        numbers = found.numbers[coarse[0]]
        size = f"groups of {numbers.group_size}" if numbers.group_size else "one scale a row"
        yield Remedy(
            what=f"Smaller groups for {_names(coarse)}: {SMALL_GROUP} weights a scale.",
            why=f"{numbers.bits} bits with {size} leave few levels to most weights where one is "
            "large.",
            recipe=_rule("*" if len(coarse) > LISTED else coarse[0],
                         f"W{numbers.bits}A16_g{SMALL_GROUP}"),
        )  # fmt: skip
    solved = [
        t for t in guilty
        if found.out_of_order.get(t, 0.0) >= ALONE
        and found.numbers[t].name.startswith("gptq") and "act-order" not in found.numbers[t].name
    ]  # fmt: skip
    if solved:
        yield Remedy(
            what="Solve the columns that matter most first (act-order), if that was not done.",
            why=f"The groups of {_names(solved)} are in the order of the columns; the file does "
            "not say in which order these were solved.",
            recipe=_rule("*", _same(found.numbers[solved[0]]), quantizer="gptq",
                         options="act_order = true"),
        )  # fmt: skip


def _one_more_bit(found: Findings, guilty: Sequence[str]) -> Remedy:
    bits = [n.bits for t in guilty if (n := found.numbers[t]).bits is not None]
    least = min(bits, default=None)
    spread = (
        "No set of linears is enough"
        if found.cure is None
        else f"The smallest set that is enough for {found.target} has {found.share:.0%} of the "
        "weights"
    )
    if least is None or least >= 8:
        return Remedy(
            what="A scheme with more bits for all linears, or a plan that chooses them: "
            "`pennyweight plan`.",
            why=f"{spread}, so that the loss is not one layer's.",
        )
    return Remedy(
        what=f"More than {least} bits for all linears, or a plan that shares them out: "
        "`pennyweight plan`.",
        why=f"{spread}, so that the loss is not one layer's.",
        recipe=_rule("*", f"W{least + 1 if least < 4 else 8}A16_g{SMALL_GROUP * 4}"),
    )


def _same(numbers: Numbers) -> str:
    """The scheme of a name of ours, or the nearest of ours to another layout."""
    if numbers.name and " " not in numbers.name:
        return numbers.name
    group = f"_g{numbers.group_size}" if numbers.group_size else ""
    return f"W{numbers.bits or 4}A16{group}"


def _rule(match: str, scheme: str, quantizer: str = "", options: str = "") -> str:
    lines = ["[[rule]]", *([f'match = "{match}"'] if match != "*" else []), f'scheme = "{scheme}"']
    if quantizer:
        lines.append(f'quantizer = "{quantizer}"')
    return "\n".join([*lines, *([f"options = {{ {options} }}"] if options else [])])


def _names(names: Sequence[str]) -> str:
    shown = [name.removesuffix(".weight") for name in names[:LISTED]]
    more = f" and {len(names) - LISTED} others" if len(names) > LISTED else ""
    return ", ".join(shown) + more
