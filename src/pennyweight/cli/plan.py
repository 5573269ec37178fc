"""`pennyweight plan`: the cheapest mix of schemes that stays inside a budget."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pennyweight.cli.engine import Address, EngineName, RayWorkers, engine_of
from pennyweight.cli.options import (
    CalibrateOn,
    Model,
    PlanOverrides,
    QuantizerName,
    Quiet,
    Samples,
    SplitAt,
    Threads,
    Tokens,
    TrustRemoteCode,
    names,
    sense_options,
)

if TYPE_CHECKING:
    from pennyweight.study.planning.planner import Planned

BudgetText = Annotated[
    str,
    typer.Option(
        "--budget",
        help="What may be lost: 'kl<=0.02' (nats a token), 'ppl<=1%', 'recovery>=99% on TASKS' "
        "(TASKS as `eval --tasks` takes them). Or what may be spent, for the least loss: "
        "'bits<=4.5' (a weight), 'ratio>=0.9' (of parameters in 4 bits or fewer).",
        show_default=False,
    ),
]


def plan_command(
    model: Model,
    budget: BudgetText,
    output: Annotated[Path, typer.Option("--output", "-o", help="The plan, as plan.toml.")],
    minimize: Annotated[
        str,
        typer.Option(
            help="size, ratio (parameters above 4 bits), or latency or cost, of a file of --costs."
        ),
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
    also: Annotated[str, typer.Option(help="lm_head: a unit too, where it is not tied.")] = "",
    allocator: Annotated[
        str, typer.Option(help="`pennyweight list allocators` shows them.")
    ] = "exact",
    costs: Annotated[
        Path | None,
        typer.Option(help="What shapes and schemes take: a file of `pennyweight costs`, or TOML."),
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Of the machine: makes seconds the cost to minimize.")
    ] = None,
    quantizer: QuantizerName = None,
    transform: Annotated[
        list[str] | None,
        typer.Option(help="Rewrite every candidate by it, as awq. Repeatable."),
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option(help="Learn over the blocks of every candidate, as signround. Repeatable."),
    ] = None,
    sense_train: Annotated[
        bool,
        typer.Option(
            "--sense-train",
            help="Measure units as the trainers leave them, not as the rules do: takes longer.",
        ),
    ] = False,
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
    limit: Annotated[
        int | None, typer.Option(min=1, help="Items of each task of the budget; all if not given.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Examples before a question; else as the task says.")
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Ask through the tokenizer's chat template.")
    ] = False,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Run code the model wrote (HumanEval), with limits.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Candidates to build at most.")] = 6,
    any_engine: Annotated[
        bool, typer.Option("--any-engine", help="Also plans that vLLM cannot serve.")
    ] = False,
    work: Annotated[
        Path | None, typer.Option(help="Where an interrupted plan continues [OUTPUT.work].")
    ] = None,
    overrides: PlanOverrides = None,
    engine: EngineName = "local",
    address: Address = None,
    workers: RayWorkers = None,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    threads: Threads = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and not a table.")] = False,
) -> None:
    """Find the cheapest mix of schemes for MODEL inside a budget, and write it to OUTPUT.

    Every candidate is built and measured on text that the search has not seen. OUTPUT is a recipe:
    `pennyweight quantize MODEL --recipe OUTPUT` carries it out. OUTPUT.work keeps what was
    measured, so that an interrupted or repeated command continues there. A cluster measures units
    and passes calibration samples through candidates, which are built one after another.
    """
    from pennyweight.cli.progress import progress_on
    from pennyweight.evaluate import plain
    from pennyweight.pipeline.recipe import parse_recipe
    from pennyweight.study.planning.budgeted import wish_of
    from pennyweight.study.planning.planner import plan

    transform, train = transform or [], train or []
    options = sense_options(overrides, ("quantizer", "estimator", "allocator", *transform, *train))
    how = {
        "quantizer": quantizer, "options": options["quantizer"],
        "schemes": names(schemes), "pin": pins, "minimize": minimize, "costs": costs,
        "price_per_hour": price_per_hour, "sense": sense, "sense_train": sense_train,
        "estimator": estimator, "estimator_options": options["estimator"],
        "granularity": granularity, "also": names(also),
        "allocator": allocator, "allocator_options": options["allocator"],
        "sense_data": sense_data, "data": data, "split_at": split_at, "max_tokens": max_tokens,
        "document_tokens": document_tokens, "limit": limit, "shots": shots,
        "chat_template": chat_template, "run_code": run_code, "rounds": rounds,
    }  # fmt: skip
    observed = {"data": calibrate, "samples": samples, "tokens": tokens, "split_at": split_at}
    asked = {
        "model": model, "budget": budget, "seed": seed, "trust_remote_code": trust_remote_code,
        "engine": "any" if any_engine else "vllm", "calibrate": given(observed), "plan": given(how),
        "transform": [{"name": name, "options": options[name]} for name in transform],
        "train": [{"name": name, "options": options[name]} for name in train],
    }  # fmt: skip
    wish = wish_of(parse_recipe(asked, "options"))
    console = Console(stderr=True)
    bar = progress_on(console, quiet=quiet)
    with engine_of(engine, address, workers) as made, bar as progress:
        planned = plan(wish, output, work=work, engine=made, threads=threads, progress=progress)
    if as_json:
        typer.echo(json.dumps(plain(planned.facts), indent=1))
    else:
        show_plan(planned, Console(highlight=False))


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that were given; the rest keeps its default."""
    return {key: value for key, value in options.items() if value not in (None, [], ())}


def show_plan(planned: "Planned", console: Console) -> None:
    """The candidates in the order in which they were built, and the chosen one."""
    timed = planned.facts["minimise"] not in ("size", "ratio")
    cost = [f"{planned.facts['minimise']}, {planned.facts['cost_unit']}"] if timed else []
    table = Table("", "bits", "Q_r", *cost, "predicted", "measured", "95 % interval", "inside")
    for column in table.columns[1:-1]:
        column.justify = "right"
    for one in planned.outcome.candidates:
        loss, mark = one.measured.loss, "*" if one is planned.chosen else ""
        table.add_row(
            mark, f"{one.figures.bits_per_weight:.3f}", f"{one.figures.quantization_ratio:.3f}",
            *([f"{one.cost:.4g}"] if timed else []),
            f"{one.predicted:.5g}", f"{loss.value:.5g}", f"{loss.low:.5g} to {loss.high:.5g}",
            "yes" if one.inside else "no",
        )  # fmt: skip
    console.print(table)
    for line in _told(planned):
        console.print(line, soft_wrap=True, markup=False)


def _told(planned: "Planned"):
    budget, figures = planned.facts["budget"], planned.chosen.figures
    measured, outcome = planned.chosen.measured, planned.outcome
    noise = "" if planned.noise is None else f"; 16 bits alone lose {planned.noise:.3g}"
    where = f"{measured.tokens} tokens"
    if exam := planned.facts.get("exam"):
        where = f"{exam['items']} items of {', '.join(exam['tasks'])}"
    yield (
        f"{planned.path}: {budget['text']}, {figures.bits_per_weight:.3f} bits per weight, "
        f"{figures.size_bytes:.0f} bytes; lost in {budget['unit']}, measured on {where} that the "
        f"search has not seen{noise}"
    )
    if budget["bounded"] == "cost":
        return
    if kept := measured.recovery_percent:
        best, kl = planned.facts["exam"]["best_possible_recovery_percent"], measured.kl_nats
        yield (
            f"recovery {kept.value:.2f} % ({kept.low:.2f} to {kept.high:.2f}); every answer of the "
            f"reference would show {best['low']:.2f} % or more; KL on text {kl.value:.4g} nats a "
            f"token ({kl.low:.4g} to {kl.high:.4g})"
        )
    yield (
        f"observed {'KL is' if exam else 'losses are'} {outcome.correction:.3g} times the sums of "
        "those of single units; "
        + ("nothing cheaper among the candidates is inside" if outcome.tight
           else "rounds are spent: a cheaper plan may be inside; --rounds looks on")
    )  # fmt: skip
