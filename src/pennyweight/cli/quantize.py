"""`pennyweight quantize`: make a quantized checkpoint and prove it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from pennyweight.cli.engine import Address, EngineName, RayWorkers, engine_of
from pennyweight.cli.options import (
    CalibrateOn,
    ChatTemplate,
    ModelOrRecipes,
    Overrides,
    QuantizerName,
    Quiet,
    RecipeFile,
    Samples,
    SchemeName,
    Seed,
    SplitAt,
    Threads,
    Tokens,
    TrustRemoteCode,
    recipe_from,
)

if TYPE_CHECKING:
    from pennyweight.pipeline.quantize import Result
    from pennyweight.pipeline.recipe import Recipe


def quantize_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A directory that does not exist yet.")
    ],
    model: ModelOrRecipes = None,
    scheme: SchemeName = None,
    quantizer: QuantizerName = None,
    calibrate: CalibrateOn = None,
    samples: Samples = None,
    tokens: Tokens = None,
    split_at: SplitAt = None,
    chat_template: ChatTemplate = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    plan: Annotated[
        Path | None, typer.Option(help="Repeat a saved plan.json instead of making a plan.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Plan first, for the smallest result that loses no more: 'kl<=0.02', 'ppl<=1%', "
            "'recovery>=99% on TASKS'. "
            "`pennyweight plan` has more options."
        ),
    ] = None,
    seed: Seed = None,
    engine: EngineName = "local",
    address: Address = None,
    workers: RayWorkers = None,
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="Where to compute. Only cpu so far.")] = "cpu",
    target: Annotated[
        str | None,
        typer.Option(
            help="compressed-tensors, packed or dense; auto (the default) is the first that holds "
            "the result."
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    keep_work: Annotated[bool, typer.Option("--keep-work", help="Keep OUTPUT.work.")] = False,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Quantize MODEL into the directory OUTPUT, and prove that the files hold what was computed.

    Interrupted at any moment, the same command continues and ends with the same bytes. A cluster
    passes the calibration samples through the blocks; linears are solved in this process.
    """
    from pennyweight.cli.progress import progress_on
    from pennyweight.core import RecipeError, UnsupportedError
    from pennyweight.pipeline.job import prepare_plan
    from pennyweight.pipeline.quantize import quantize
    from pennyweight.pipeline.recipe import Recipe

    if device != "cpu":
        raise UnsupportedError(f"--device {device}: only cpu is supported so far")
    if plan and (recipe or scheme or quantizer or calibrate or overrides or seed is not None):
        raise RecipeError(
            "--plan: a plan is complete; edit the file instead of giving other options"
        )
    calibration: dict[str, Any] = {
        "data": calibrate, "samples": samples, "tokens": tokens, "split_at": split_at,
        "chat_template": chat_template,
    }  # fmt: skip
    what = prepare_plan(plan, model) if plan else recipe_from(
        model,
        recipe,
        overrides,
        rule={"scheme": scheme, "quantizer": quantizer},
        calibrate=calibration,
        top={
            "seed": seed, "trust_remote_code": trust_remote_code or None, "target": target,
            "budget": budget, "engine": "vllm" if budget else None,
        },
    )  # fmt: skip
    console = Console(stderr=True, highlight=False)
    bar = progress_on(console, quiet=quiet)
    with engine_of(engine, address, workers) as made, bar as progress:
        means = {"engine": made, "threads": threads, "progress": progress}
        if isinstance(what, Recipe) and what.budget:
            what = _planned(what, output, None if quiet else console, means)
        result = quantize(what, output, keep_work=keep_work, **means)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=1))
    else:
        show_result(result, Console(highlight=False))


def _planned(
    asked: "Recipe", output: Path, console: Console | None, means: dict[str, Any]
) -> "Recipe":
    """What a recipe with a budget becomes. Imports here: only these recipes need a solver."""
    from pennyweight.cli.plan import show_plan
    from pennyweight.study.planning.budgeted import plan_first, planned_recipe

    planned = plan_first(asked, output, **means)
    if console:
        show_plan(planned, console)
    return planned_recipe(asked, planned)


def show_result(result: "Result", console: Console) -> None:
    """What was made, and what was proven of it."""
    from pennyweight.export.card import readable_bytes

    size = result.proof["size"]
    console.print(
        f"{result.path}: {readable_bytes(size['bytes_before'])} -> "
        f"{readable_bytes(size['bytes_after'])}, "
        f"{size['bits_per_weight']:.2f} bits per quantized weight, {result.elapsed_s:.0f} s, "
        f"peak memory {result.peak_bytes / 2**30:.2f} GiB",
        soft_wrap=True,
    )
    show_proof(result.proof, console)


def show_proof(proof: dict[str, Any], console: Console) -> None:
    """The three parts of a proof in three lines."""
    from pennyweight.export.card import describe_logits

    census = proof["census"]
    count = census["rewritten_by_transforms"]
    rescaled = f"{count} rewritten by transforms, " if count else ""
    console.print(
        f"proof: {census['quantized']} tensors quantized, {rescaled}"
        f"{census['copied_bit_for_bit']} copied, none missing; every weight decodes bit for bit",
        soft_wrap=True,
    )
    console.print(f"       {describe_logits(proof['logits'])}", soft_wrap=True)
