"""`pennyweight plan`: the cheapest mix of schemes that stays inside a budget."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pennyweight.cli.options import (
    CalibrateOn,
    Model,
    QuantizerName,
    Samples,
    SplitAt,
    Tokens,
    TrustRemoteCode,
)

if TYPE_CHECKING:
    from pennyweight.study.planning.planner import Planned

BudgetText = Annotated[
    str,
    typer.Option(
        "--budget",
        help="What may be lost: 'kl<=0.02' (nats a token), 'ppl<=1%'. Or what may be spent, for "
        "the least loss: 'bits<=4.5' (a weight), 'ratio>=0.9' (of parameters in 4 bits or fewer).",
        show_default=False,
    ),
]


def plan_command(
    model: Model,
    budget: BudgetText,
    output: Annotated[Path, typer.Option("--output", "-o", help="The plan, as plan.toml.")],
    minimize: Annotated[
        str,
        typer.Option(help="size, ratio (parameters above 4 bits), or with --costs its cost."),
    ] = "size",
    schemes: Annotated[
        str | None,
        typer.Option(help="Candidates, as W4A16_g128,W8A16_g128,W16A16; usual ones if not given."),
    ] = None,
    pins: Annotated[
        list[str] | None,
        typer.Option("--pin", help="'PATTERN=SCHEME' for tensors or units. Repeatable."),
    ] = None,
    sense: Annotated[
        Path | None, typer.Option(help="A table of `pennyweight sense`; measured if not given.")
    ] = None,
    estimator: Annotated[str, typer.Option(help="As `pennyweight sense` knows them.")] = "direct",
    granularity: Annotated[
        str, typer.Option(help="fused (servable), or matmul or layer.")
    ] = "fused",
    allocator: Annotated[
        str, typer.Option(help="`pennyweight list allocators` shows them.")
    ] = "exact",
    costs: Annotated[
        Path | None, typer.Option(help="Measured costs of shapes and schemes, TOML or JSON.")
    ] = None,
    quantizer: QuantizerName = None,
    calibrate: CalibrateOn = None,
    samples: Samples = None,
    tokens: Tokens = None,
    sense_data: Annotated[
        list[str] | None,
        typer.Option(help="Text that the units are measured on; stdlib if none. Repeatable."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Other text, that candidates are measured on; stdlib-heldout if none. Repeatable."
        ),
    ] = None,
    split_at: SplitAt = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to measure on.")] = 16384,
    document_tokens: Annotated[int, typer.Option(help="Of each document only so many.")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="Candidates to build at most.")] = 6,
    any_engine: Annotated[
        bool, typer.Option("--any-engine", help="Also plans that vLLM cannot serve.")
    ] = False,
    work: Annotated[
        Path | None, typer.Option(help="Where an interrupted plan continues [OUTPUT.work].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; time only, never the result.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and not a table.")] = False,
) -> None:
    """Find the cheapest mix of schemes for MODEL inside a budget, and write it to OUTPUT.

    Every candidate is built and measured on text that the search has not seen. OUTPUT is a recipe:
    `pennyweight quantize MODEL --recipe OUTPUT` carries it out. OUTPUT.work keeps what was
    measured, so that an interrupted or repeated command continues there.
    """
    from pennyweight.cli.progress import Bar
    from pennyweight.core import Progress
    from pennyweight.evaluate import plain
    from pennyweight.study.planning.planner import plan

    wish = wish_from(
        model,
        budget,
        ingredients={
            "quantizer": quantizer,
            "seed": seed,
            "trust_remote_code": trust_remote_code or None,
        },
        calibrate={"data": calibrate, "samples": samples, "tokens": tokens, "split_at": split_at},
        pins=pins,
        schemes=schemes,
        texts={"max_tokens": max_tokens, "document_tokens": document_tokens, "seed": seed},
        rest={
            "minimise": minimize, "sense": sense, "estimator": estimator, "costs": costs,
            "granularity": granularity, "allocator": allocator, "rounds": rounds,
            "any_engine": any_engine, "split_at": split_at,
            "data": data or None, "sense_data": sense_data or None,
        },
    )  # fmt: skip
    console = Console(stderr=True)
    if quiet:
        planned = plan(wish, output, work=work, threads=threads, progress=Progress())
    else:
        with Bar(console) as bar:
            planned = plan(wish, output, work=work, threads=threads, progress=bar)
    if as_json:
        typer.echo(json.dumps(plain(planned.facts), indent=1))
    else:
        show_plan(planned, Console(highlight=False))


def wish_from(
    model: str,
    budget: str,
    *,
    ingredients: dict[str, Any],
    calibrate: dict[str, Any],
    pins: list[str] | None = None,
    schemes: str | None = None,
    texts: dict[str, Any] | None = None,
    rest: dict[str, Any] | None = None,
):
    """The wish that options spell; what is None keeps its default."""
    from pennyweight.evaluate import Settings
    from pennyweight.pipeline.recipe import Calibrate, check_calibration
    from pennyweight.study.bank import Ingredients
    from pennyweight.study.planning.budget import parse_budget
    from pennyweight.study.planning.pins import parse_pin
    from pennyweight.study.planning.wish import Wish, text_settings

    chosen = Calibrate(**given(calibrate))
    check_calibration(chosen, ingredients.get("seed") or 0, "options")
    return Wish(
        ingredients=Ingredients(model=model, calibrate=chosen, **given(ingredients)),
        budget=parse_budget(budget),
        pins=tuple(parse_pin(pin) for pin in pins or []),
        schemes=tuple(s.strip() for s in (schemes or "").split(",") if s.strip()),
        settings=Settings(**texts) if texts else text_settings(),
        **given(rest or {}),
    )


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that were given; lists of the command line as the tuples that dataclasses hold."""
    as_tuple = lambda value: tuple(value) if isinstance(value, list) else value
    return {key: as_tuple(value) for key, value in options.items() if value is not None}


def show_plan(planned: "Planned", console: Console) -> None:
    """The candidates in the order in which they were built, and the chosen one."""
    table = Table("", "bits", "Q_r", "predicted", "measured", "95 % interval", "inside")
    for column in table.columns[1:6]:
        column.justify = "right"
    for one in planned.outcome.candidates:
        loss, mark = one.measured.loss, "*" if one is planned.chosen else ""
        table.add_row(
            mark, f"{one.figures.bits_per_weight:.3f}", f"{one.figures.quantization_ratio:.3f}",
            f"{one.predicted:.5g}", f"{loss.value:.5g}", f"{loss.low:.5g} to {loss.high:.5g}",
            "yes" if one.inside else "no",
        )  # fmt: skip
    console.print(table)
    for line in _told(planned):
        console.print(line, soft_wrap=True, markup=False)


def _told(planned: "Planned"):
    budget, figures = planned.facts["budget"]["text"], planned.chosen.figures
    measured, outcome = planned.chosen.measured, planned.outcome
    noise = "" if planned.noise is None else f"; 16 bits alone lose {planned.noise:.3g}"
    yield (
        f"{planned.path}: {budget}, {figures.bits_per_weight:.3f} bits per weight, "
        f"{figures.size_bytes:.0f} bytes; measured in {planned.facts['budget']['measured']} on "
        f"{measured.tokens} tokens that the search has not seen{noise}"
    )
    if planned.facts["budget"]["bounded"] == "cost":
        return
    yield (
        f"observed losses are {outcome.correction:.3g} times the sums of those of single units; "
        + ("nothing cheaper among the candidates is inside" if outcome.tight
           else "rounds are spent: a cheaper plan may be inside; --rounds looks on")
    )  # fmt: skip
