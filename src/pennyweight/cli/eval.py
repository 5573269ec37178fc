"""`pennyweight eval`: measure a model, alone or against a reference."""

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pennyweight.evaluate import Evaluation, Interval

Row = tuple[str, "Interval", str]


class BosRule(StrEnum):
    auto = "auto"
    always = "always"
    never = "never"


def eval_command(
    model: Annotated[str, typer.Argument(help="Model directory or Hub id.")],
    against: Annotated[
        str | None, typer.Option(help="Reference model to measure the distance from.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="stdlib-heldout (if none is given), stdlib, or a text file. Repeatable."),
    ] = None,
    split_at: Annotated[
        str | None,
        typer.Option(help=r"Regular expression that cuts texts, as '\n\n(?=Once upon a time)'."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens a window; 512 or the model's limit if not given.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="New tokens a window; the context if not given: no overlap.")
    ] = None,
    bos: Annotated[
        BosRule, typer.Option(help="Documents that begin with BOS; auto: as the tokenizer does.")
    ] = BosRule.auto,
    max_tokens: Annotated[int | None, typer.Option(help="Stop after this many tokens.")] = None,
    document_tokens: Annotated[
        int | None, typer.Option(help="Take only so many tokens of each document.")
    ] = None,
    kv_cache: Annotated[
        str | None,
        typer.Option(help="Round the model's keys and values, as int8, fp8_static, int4_g32_asym."),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(help="Round the operands of QK and PV, as int8; of one of them, as pv:fp8."),
    ] = None,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(help="Text for the scales of _static formats: stdlib (if none) or a file."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; all if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and not a table.")] = False,
) -> None:
    """Measure perplexity and bits per byte, and with --against the distance from a reference.

    Every number has a 95 % interval from a paired bootstrap over documents.
    """
    # Here and not above: torch and transformers take seconds that --help should not.
    import torch

    from pennyweight.evaluate import Settings
    from pennyweight.model.attention import AttentionFormats
    from pennyweight.pipeline.evaluate import DEFAULT_DATA, evaluate

    if threads is not None:
        torch.set_num_threads(threads)
    with Console(stderr=True).status(f"evaluating {model}"):
        evaluation = evaluate(
            model,
            against=against,
            data=data or DEFAULT_DATA,
            split_at=split_at,
            settings=Settings(
                context=context,
                stride=stride,
                bos=bos.value,
                max_tokens=max_tokens,
                document_tokens=document_tokens,
                seed=seed,
            ),
            attention=AttentionFormats(
                kv_cache=kv_cache, **_products(attention), calibrate=tuple(calibrate or ["stdlib"])
            ),
        )
    if as_json:
        typer.echo(json.dumps(evaluation.to_dict(), indent=2))
    else:
        show(evaluation, Console())


def _products(attention: str | None) -> dict[str, str]:
    """Product -> format, of `int8` (both), `qk:int8`, or `qk:int8,pv:fp8`."""
    if attention is None:
        return {}
    if ":" not in attention:
        return {"qk": attention, "pv": attention}
    parts = [part.partition(":") for part in attention.split(",")]
    found = {product: name for product, _, name in parts}
    if unknown := found.keys() - {"qk", "pv"}:
        raise typer.BadParameter(f"{min(unknown)!r} is no product of attention; use qk: or pv:")
    return found


def show(evaluation: "Evaluation", console: Console) -> None:
    """The table of an evaluation, and the conditions it was made under."""
    # markup and highlighting off: the name of a model or file is not ours to interpret.
    console.print(_table(evaluation))
    for line in _conditions(evaluation):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(evaluation: "Evaluation") -> Table:
    table = Table("", "value", f"{evaluation.confidence:.0%} interval")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, interval, form in _rows(evaluation):
        ends = f"{interval.low:{form}} to {interval.high:{form}}"
        known = interval.low == interval.low  # nan: nothing could be resampled
        table.add_row(name, f"{interval.value:{form}}", ends if known else "unknown: one window")
    return table


def _rows(evaluation: "Evaluation") -> list[Row]:
    rows: list[tuple[str, Interval | None, str]] = [
        ("perplexity", evaluation.perplexity, ".4f"),
        ("bits per byte", evaluation.bits_per_byte, ".4f"),
    ]
    if comparison := evaluation.comparison:
        rows += [
            ("perplexity of the reference", comparison.perplexity, ".4f"),
            ("bits per byte of the reference", comparison.bits_per_byte, ".4f"),
            ("change of perplexity, %", comparison.perplexity_change_percent, "+.3f"),
            ("mean KL divergence, nats a token", comparison.kl_nats, ".6f"),
            ("same top token, %", comparison.top1_agreement_percent, ".2f"),
        ]
    return [(name, interval, form) for name, interval, form in rows if interval is not None]


def _conditions(evaluation: "Evaluation") -> list[str]:
    settings = evaluation.settings
    split = f", cut at '{evaluation.split_at}'" if evaluation.split_at else ""
    first = f", the first {settings.document_tokens} tokens of each document"
    skipped = f", {evaluation.skipped} of fewer than two skipped" if evaluation.skipped else ""
    reference = f" against {evaluation.reference}" if evaluation.reference else ""
    return [
        f"model: {evaluation.model}{reference}",
        *_rounded(evaluation),
        f"data: {', '.join(evaluation.data)}{split}{first if settings.document_tokens else ''}",
        f"scored: {evaluation.tokens} tokens, {evaluation.bytes:.0f} bytes, {evaluation.documents} "
        f"documents{skipped}, {evaluation.windows} windows",
        f"windows: context {settings.context}, stride {settings.stride}; BOS {evaluation.bos}",
        f"interval: paired bootstrap over {evaluation.unit}s, {settings.resamples} resamples, "
        f"seed {settings.seed}",
    ]


def _rounded(evaluation: "Evaluation") -> list[str]:
    """What is rounded in the attention of the model; nothing where nothing is."""
    formats = evaluation.attention
    said = []
    if formats.kv_cache:
        said.append(f"KV cache {formats.kv_cache} ({evaluation.kv_cache_bits:.4g} bits a number)")
    for product, name in (("QK", formats.qk), ("PV", formats.pv)):
        if name:
            said.append(f"operands of {product} {name}")
    if formats.static:
        said.append(f"static scales from {', '.join(formats.calibrate)}")
    return [f"rounded in the model: {'; '.join(said)}"] if said else []
