"""Which parts of a quantized model cost what, and what to try next: a diagnosis."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import plotly.graph_objects as go

from pennyweight.report.content import Absent, Code, Heading, Part, Plot, Section, Table, Text
from pennyweight.report.figure import axis, figure, marker
from pennyweight.report.files import DiagnosisFile, ErrorFacts, PartFacts
from pennyweight.report.material import Material
from pennyweight.report.words import label, number, plural, short, shown

TITLE = "What costs what"
MOST = 16  # parts that are drawn; the table has all
LISTED = 8  # names in a sentence


def section(material: Material) -> Section | Absent:
    found = material.diagnosis
    if found is None:
        first = material.models[0]
        source, path = shlex.quote(first.plan.model), shlex.quote(str(first.path))
        return Absent(
            title=TITLE,
            need=f"`pennyweight diagnose {source} {path} --json > diagnosis.json`, given with "
            "--diagnosis",
        )
    if not found.parts:
        return Absent(title=TITLE, need="a diagnosis of a model with quantized parts")
    parts: list[Part] = [Text(text=_whole(found)), _plot(found), Text(text=_cure(found))]
    return Section(name="diagnosis", title=TITLE, parts=(*parts, *_remedies(found)))


def gain(found: DiagnosisFile, part: PartFacts) -> float:
    """Nats a token that restoring the part wins back; below 0 if it makes things worse."""
    whole, restored = found.whole.kl_nats.interval, part.only_restored.kl_nats.interval
    return whole.value - restored.value


def _whole(found: DiagnosisFile) -> str:
    tokens = found.settings.get("tokens")
    on = f", on {tokens:,} tokens" if isinstance(tokens, int) else ""
    said = (
        f"{short(found.quantized)} against {short(found.reference)}{on}: KL divergence "
        f"{shown(found.whole.kl_nats.interval, '.3g')} nats a token, perplexity "
        f"{shown(found.whole.perplexity_change_percent.interval, '+.3g')} %."
    )
    halves = {
        "its weights alone, with inputs exact": found.weights_only,
        "its rounded inputs alone, with weights exact": found.activations_only,
    }
    for words, loss in halves.items():
        if loss is not None:
            said += f" Of {words}: {shown(loss.kl_nats.interval, '.3g')}."
    return said


def _plot(found: DiagnosisFile) -> Plot:
    drawn = found.parts[:MOST]
    names = [label(_short(part.name)) for part in drawn]
    alone = [part.only_quantized.kl_nats.interval.value for part in drawn]
    gained = [gain(found, part) for part in drawn]
    traces = [
        go.Scatter(
            x=values, y=names, mode="markers", name=name,
            marker=marker(index, 10, is_open=index == 1),
            hovertemplate="%{y}: %{x:.3g}<extra>%{fullData.name}</extra>",
        )
        for index, (name, values) in enumerate(
            {"quantized alone": alone, "won back if restored": gained}.items()
        )
    ]  # fmt: skip
    left = len(found.parts) - len(drawn)
    return Plot(
        name="diagnosis",
        title="KL divergence of each part, alone and within the model"
        + (f"; {plural(left, 'part')} with less in the table" if left else ""),
        label="KL divergence in nats a token of each part: of the reference with only this part "
        "quantized, and what restoring it wins back. The costliest part is at the top.",
        figure=figure(
            traces,
            x=axis("KL divergence, nats a token", nticks=6),
            y=axis("", autorange="reversed", type="category", dtick=1, tickfont={"size": 11}),
        ),
        table=_table(found),
        height=100 + 24 * len(drawn),
    )


def _table(found: DiagnosisFile) -> Table:
    errors = {error.name: error for error in found.errors}
    rows = tuple(
        (
            _short(part.name), part.numbers or "as it was",
            shown(part.only_quantized.kl_nats.interval, ".3g"), number(gain(found, part)),
            *_shares(errors.get(part.name.removesuffix(".weight"))),
        )
        for part in found.parts
    )  # fmt: skip
    return Table(
        caption="KL in nats a token; errors of the outputs, squared, in percent of their energy: "
        "own is made here, inherited came with the input",
        head=("part", "numbers", "alone", "won back", "own error, %", "inherited, %", "total, %"),
        rows=rows,
        words=frozenset({0, 1}),
    )


def _shares(error: ErrorFacts | None) -> tuple[str, str, str]:
    """Of several projections together there is no error."""
    if error is None:
        return "none", "none", "none"
    found = (error.own, error.inherited, error.total)
    own, inherited, total = ("none" if x is None else number(100 * x) for x in found)
    return own, inherited, total


def _cure(found: DiagnosisFile) -> str:
    cure = found.cure
    metric = "%" if found.target.startswith("ppl") else "nats a token"
    left = f"{shown(cure.loss.interval, '.3g')} {metric}"
    if cure.parts is None:
        return f"Restoring every part is not enough for `{found.target}`: {left} is left."
    if not cure.parts:
        return f"`{found.target}` holds with nothing restored: {left}."
    names = ", ".join(map(_short, cure.parts[:LISTED]))
    others = len(cure.parts) - LISTED
    return (
        f"Restoring {len(cure.parts)} of {plural(len(found.parts), 'part')} is enough for "
        f"`{found.target}` (then {left}): {names}{f' and {others} others' if others > 0 else ''}."
    )


def _remedies(found: DiagnosisFile) -> Iterator[Part]:
    if found.remedies:
        yield Heading(text="What to try next")
    for each in found.remedies:
        yield Text(text=f"{each.what} {each.why}")
        if each.recipe:
            yield Code(text=each.recipe)


def _short(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `3.mlp.up_proj`; of a block all of it."""
    parts = name.removesuffix(".weight").split(".")
    numbers = [index for index, part in enumerate(parts[:-1]) if part.isdigit()]
    return ".".join(parts[numbers[0] :] if numbers else parts)
