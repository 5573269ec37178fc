"""`pennyweight sense`: what each unit of a model loses under each scheme."""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from pennyweight.cli.engine import Address, EngineName, RayWorkers, engine_of
from pennyweight.cli.options import (
    CalibrateOn,
    Model,
    QuantizerName,
    Quiet,
    Samples,
    SenseOverrides,
    Threads,
    Tokens,
    TrustRemoteCode,
    names,
    sense_options,
)

if TYPE_CHECKING:
    from pennyweight.study.sensitivity.sense import Comparison
    from pennyweight.study.sensitivity.table import Sensitivity


class Granularity(StrEnum):
    matmul = "matmul"
    fused = "fused"
    layer = "layer"


def sense_command(
    model: Model,
    schemes: Annotated[
        str, typer.Option(help="Candidates, as W3A16_g64,W4A16_g64,W8A16_g64.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write, as sense.json.")
    ],
    quantizer: QuantizerName = None,
    granularity: Annotated[
        Granularity,
        typer.Option(help="What gets one scheme: a projection, what is fused, a block."),
    ] = Granularity.fused,
    also: Annotated[
        str, typer.Option(help="Further units: qk,pv,kv_cache,embeddings,lm_head,router.")
    ] = "",
    operands: Annotated[
        str, typer.Option(help="Formats of qk, pv and kv_cache, as int8,int4_g32.")
    ] = "int8",
    estimator: Annotated[
        str, typer.Option(help="direct, or a cheaper one: `pennyweight list estimators`.")
    ] = "direct",
    data: Annotated[
        list[str] | None, typer.Option(help="Text to measure on; stdlib if none. Repeatable.")
    ] = None,
    split_at: Annotated[
        str | None, typer.Option(help="Regular expression that cuts text files into documents.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens a window; 512 or the model's limit if not given.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.")] = 16384,
    document_tokens: Annotated[
        int, typer.Option(help="Take only so many tokens of each document.")
    ] = 512,
    train: Annotated[
        list[str] | None,
        typer.Option(help="Learn over every block in every scheme, as signround. Repeatable."),
    ] = None,
    calibrate: CalibrateOn = None,
    samples: Samples = None,
    tokens: Tokens = None,
    overrides: SenseOverrides = None,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    bank: Annotated[
        Path | None, typer.Option(help="A folder where the quantized weights stay, to be reused.")
    ] = None,
    records: Annotated[
        Path | None, typer.Option(help="A file to which the measurements are added.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measure how well every estimator does.")
    ] = False,
    engine: EngineName = "local",
    address: Address = None,
    workers: RayWorkers = None,
    threads: Threads = None,
    trust_remote_code: TrustRemoteCode = False,
    keep_work: Annotated[bool, typer.Option("--keep-work", help="Keep OUTPUT.work.")] = False,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and not a table.")] = False,
) -> None:
    """Measure what each unit of MODEL loses under each scheme, and write the table to OUTPUT.

    The loss is the mean KL divergence from the untouched model, in nats a token. Interrupted at any
    moment, the same command continues.
    """
    from pennyweight.cli.progress import progress_on
    from pennyweight.evaluate import Settings
    from pennyweight.pipeline.recipe import Calibrate, Training
    from pennyweight.study.bank import Ingredients
    from pennyweight.study.sensitivity.sense import Places, sense
    from pennyweight.study.sensitivity.sensing import TEXT, Request

    options = sense_options(overrides, ("quantizer", "estimator", *(train or [])))
    texts = tuple(calibrate) if calibrate else None
    calibration = {"data": texts, "samples": samples, "tokens": tokens, "split_at": split_at}
    request = Request(
        ingredients=Ingredients(
            model=model,
            quantizer=quantizer or "gptq",
            options=options["quantizer"],
            train=tuple(Training(name=name, options=options[name]) for name in train or []),
            calibrate=Calibrate(**{k: v for k, v in calibration.items() if v is not None}),
            seed=seed,
            trust_remote_code=trust_remote_code,
        ),
        schemes=names(schemes),
        granularity=granularity.value,
        also=names(also),
        operands=names(operands),
        estimator=estimator,
        options=options["estimator"],
        data=tuple(data or TEXT),
        split_at=split_at,
        settings=Settings(
            context=context, max_tokens=max_tokens, document_tokens=document_tokens, seed=seed
        ),
    )
    bar = progress_on(Console(stderr=True), quiet=quiet)
    with engine_of(engine, address, workers) as made, bar as progress:
        table, comparison = sense(
            request, Places(output=output, bank=bank, records=records, keep_work=keep_work),
            compared=compare, engine=made, threads=threads, progress=progress,
        )  # fmt: skip
    if as_json:
        found = asdict(table) | ({"comparison": comparison.to_dict()} if comparison else {})
        typer.echo(json.dumps(found, indent=2))
    else:
        _show(table, comparison, Console())


def _show(table: "Sensitivity", comparison: "Comparison | None", console: Console) -> None:
    console.print(_losses(table))
    if comparison is not None:
        console.print(_rankings(comparison))
        for one in comparison.rankings:
            if one.refused:
                console.print(one.refused, markup=False, highlight=False, soft_wrap=True)
        console.print(_additivity(comparison))
    settings = table.settings
    console.print(
        f"{table.model}: mean KL in nats a token by the estimator {table.estimator}, and bits a "
        f"weight; {table.quantizer}; {settings['tokens']} tokens of {', '.join(settings['data'])}; "
        "- is a scheme that the unit is not tried in, or whose groups do not divide its rows",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def _losses(table: "Sensitivity") -> Table:
    from pennyweight.formats.schemes import UNTOUCHED

    schemes = [name for name in table.settings["schemes"] if name != UNTOUCHED]
    shown = Table("unit", *schemes)
    shown.columns[0].overflow = "fold"
    for column in shown.columns[1:]:
        column.justify = "right"
    for unit in table.units:
        cells = []
        for scheme in schemes:
            loss, weights = unit.options.get(scheme), unit.parameters
            bits = f" ({loss.stored_bits / weights:.2f})" if loss and weights else ""
            cells.append(f"{loss.value:.3g}{bits}" if loss else "-")
        shown.add_row(unit.name, *cells)
    return shown


def _rankings(comparison: "Comparison") -> Table:
    shown = Table("estimator", "Spearman", "by scheme", "scale", "spread", "passes", "seconds")
    number = lambda value, form: "-" if value is None else f"{value:{form}}"
    for one in comparison.rankings:
        if one.refused:
            continue  # the reason is a line below the table
        each = (one.spearman_by_scheme or {}).values()
        shown.add_row(
            one.estimator, number(one.spearman, ".3f"),
            " ".join(number(value, ".3f") for value in each),
            number(one.scale, ".3g"), number(one.spread, ".3g"),
            f"{one.forward_passes:.3g} + {one.backward_passes:.3g} back", f"{one.wall_s:.1f}",
        )  # fmt: skip
    return shown


def _additivity(comparison: "Comparison") -> Table:
    shown = Table("scheme", "sum of the units' KL", "KL of all at once", "95% interval")
    for one in comparison.additivity:
        ends = f"{one.together.low:.3g} to {one.together.high:.3g}"
        shown.add_row(one.scheme, f"{one.sum:.4g}", f"{one.together.value:.4g}", ends)
    return shown
