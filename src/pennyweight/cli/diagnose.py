"""`pennyweight diagnose`: which parts of a quantized model cost what, and what to try next."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from pennyweight.cli.options import Quiet, SplitAt, Threads, TrustRemoteCode
from pennyweight.cli.sense import Granularity

if TYPE_CHECKING:
    from pennyweight.evaluate import Interval
    from pennyweight.study.diagnosis.errors import Error
    from pennyweight.study.diagnosis.examination import Diagnosis, PartLoss

WIDTH = 120  # where there is no terminal to ask
LEGEND = (
    "alone: KL in nats a token of the reference with this part of the quantized model. without: KL "
    "of the quantized model with this part of the reference, which is what the rows are ordered "
    "by. Errors are squared, over the energy of the reference's output: own is made here, "
    "inherited came with the input, total is both; weight and activation are the two halves of own."
)


def diagnose_command(
    reference: Annotated[
        str, typer.Argument(help="The model it was made of: a directory or Hub id.")
    ],
    quantized: Annotated[
        str,
        typer.Argument(
            help="compressed-tensors, our packed layout, GPTQ (2, 3, 4, 8 bits), AWQ (gemm), or "
            "dense."
        ),
    ],
    target: Annotated[
        str, typer.Option(help="The loss that restored parts must reach: ppl<=1% or kl<=0.01.")
    ] = "ppl<=1%",
    granularity: Annotated[
        Granularity | None,
        typer.Option(
            help="What is exchanged: a projection, what is fused, a block. Projections if not "
            "given, blocks if a transform rewrote the model.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Text to measure on; stdlib-heldout if none. Repeatable."),
    ] = None,
    split_at: SplitAt = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens a window; 512 or the model's limit if not given.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.")] = 8192,
    document_tokens: Annotated[
        int, typer.Option(help="Take only so many tokens of each document.")
    ] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    top: Annotated[int, typer.Option(min=1, help="Rows of the table; JSON has all.")] = 12,
    records: Annotated[
        Path | None,
        typer.Option(help="A file to which every measurement is added, and not measured again."),
    ] = None,
    threads: Threads = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and not a table.")] = False,
) -> None:
    """Find which parts of QUANTIZED lose what REFERENCE had, and what to try next.

    Two passes over the text for each part, and about as many again as the smallest set has parts.
    Limit: both models are held in memory in float32, 8 bytes a parameter together.
    """
    from pennyweight.cli.progress import progress_on
    from pennyweight.evaluate import Settings
    from pennyweight.study.diagnosis.diagnose import TEXT, Request, diagnose

    request = Request(
        reference=reference, quantized=quantized, target=target,
        granularity=granularity.value if granularity else "auto", data=tuple(data or TEXT),
        split_at=split_at, trust_remote_code=trust_remote_code,
        settings=Settings(
            context=context, max_tokens=max_tokens, document_tokens=document_tokens, seed=seed
        ),
    )  # fmt: skip
    with progress_on(Console(stderr=True), quiet=quiet) as progress:
        found = diagnose(request, records=records, threads=threads, progress=progress)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1, allow_nan=False))
    else:
        _show(found, top)


def _show(found: "Diagnosis", top: int) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    for line in _head(found):
        console.print(line, markup=False, soft_wrap=True)
    console.print()
    console.print(_parts(found, top))
    console.print(_blocks(found))
    console.print(LEGEND, soft_wrap=True)
    console.print()
    for line in [*_cure(found), "", *_remedies(found)]:
        console.print(line, markup=False, soft_wrap=True)


def _head(found: "Diagnosis") -> list[str]:
    lines = [
        f"{found.quantized} against {found.reference}, {found.settings['tokens']} tokens",
        f"KL {_ends(found.whole.kl_nats)} nats, perplexity "
        f"{_ends(found.whole.perplexity_change_percent, '+.3g')} %",
    ]
    if found.weights_only is not None:
        lines.append(f"weights alone (inputs exact): KL {_ends(found.weights_only.kl_nats)}")
    if found.activations_only is not None:
        lines.append(f"inputs alone (weights exact): KL {_ends(found.activations_only.kl_nats)}")
    if found.rewritten:
        lines.append(
            f"a transform rewrote the blocks ({found.rewritten[0]}, ..): they are compared whole"
        )
    if found.outside:
        rest = _ends(found.rest.kl_nats)
        lines.append(f"outside the blocks differ {', '.join(found.outside)}: KL {rest} of them")
    return lines


def _parts(found: "Diagnosis", top: int) -> Table:
    errors = {error.name: error for error in found.errors}
    names = ("own", "inherited", "total", "weight", "activation")
    table = Table(box=None, padding=(0, 1))
    table.add_column("part", no_wrap=True)
    for column in ("numbers", "alone", "without", *names):
        table.add_column(column, justify="right", no_wrap=True)
    for part in found.parts[:top]:
        error = _error_of(part, errors)
        shares = [_share(getattr(error, name)) if error else "" for name in names]
        table.add_row(
            _short(part.name), part.numbers,
            f"{part.only_quantized.kl_nats.value:.3g}", f"{part.only_restored.kl_nats.value:.3g}",
            *shares,
        )  # fmt: skip
    if left := len(found.parts) - top:
        table.caption = f"and {left} others (--top)" if left > 0 else None
    return table


def _error_of(part: "PartLoss", errors: dict[str, "Error"]) -> "Error | None":
    """Of a projection or a block; of several projections together there is none."""
    return errors.get(part.name.removesuffix(".weight"))


def _blocks(found: "Diagnosis") -> Table:
    table = Table(box=None, padding=(0, 1))
    for column in ("block", "own", "inherited", "total"):
        table.add_column(column, justify="left" if column == "block" else "right")
    for error in found.errors:
        if error.kind == "block":
            shares = (_share(x) for x in (error.own, error.inherited, error.total))
            table.add_row(_short(error.name), *shares)
    return table


def _cure(found: "Diagnosis") -> list[str]:
    cure = found.cure
    if cure.parts is None:
        return [
            f"Restoring every part is not enough for {found.target}: {_ends(cure.loss)} is left."
        ]
    if not cure.parts:
        return [f"{found.target} holds with nothing restored: {_ends(cure.loss)}."]
    lines = [f"Smallest set whose restoration is enough for {found.target}:"]
    lines += [f"  {name}" for name in cure.parts]
    assert cure.without_last is not None, "it has a last"
    return [*lines, f"With it {_ends(cure.loss)}; without its last {_ends(cure.without_last)}."]


def _remedies(found: "Diagnosis") -> list[str]:
    lines = []
    for number, remedy in enumerate(found.remedies, 1):
        lines += [f"{number}. {remedy.what}", f"   Why: {remedy.why}"]
        lines += [f"       {line}" for line in remedy.recipe.splitlines()]
    return lines


def _ends(interval: "Interval", form: str = ".3g") -> str:
    return f"{interval.value:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def _short(name: str) -> str:
    """`model.layers.3.self_attn.q_proj` -> `3.self_attn.q_proj`; of a block all of it."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts[:-1]) if part.isdigit()]
    return ".".join(parts[numbers[0] :] if numbers else parts)


def _share(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{100 * value:.3g}%"
