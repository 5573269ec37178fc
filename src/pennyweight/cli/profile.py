"""`pennyweight profile`: what a model's activations look like, and what that means."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from pennyweight.cli.engine import Address, EngineName, RayWorkers, engine_of
from pennyweight.cli.options import (
    ChatTemplate,
    Model,
    Quiet,
    SplitAt,
    Threads,
    TrustRemoteCode,
)

if TYPE_CHECKING:
    from pennyweight.pipeline.profile import Profile

COLUMNS = (
    "", "absmax", "first", "kurt", "max/med", "top", "loud", "massive",
    "dB all", "dB rest", "dB token",
)  # fmt: skip
WIDTH = 110  # where there is no terminal to ask
LEGEND = (
    "absmax: of all but first tokens; first: of these alone. kurt: kurtosis, 3 for a normal "
    "distribution. max/med: largest over median channel. top: the share of the top 1 % of channels "
    "in the energy. loud: channels above 6 at 6 % of the tokens. massive: numbers over 100 and "
    "1000 times the median, first tokens + others. dB: signal to noise of what reaches the outputs "
    "if the input is int8 with one scale a sample, the same without first tokens, and one scale a "
    "token."
)


def profile_command(
    model: Model,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            "--calibrate",
            help="A calibration set [stdlib]: see `list calibrations`. Repeated: another set, to "
            "be compared with the first.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples of each set.")] = 32,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each sample.")] = 512,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    split_at: SplitAt = None,
    chat_template: ChatTemplate = None,
    engine: EngineName = "local",
    address: Address = None,
    workers: RayWorkers = None,
    threads: Threads = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Outliers of MODEL's activations, and whether the calibration set changes them.

    Walks the blocks one by one; memory holds one block and the sets' hidden states.
    """
    from functools import partial

    from pennyweight.cli.progress import progress_on
    from pennyweight.pipeline.advice import advise
    from pennyweight.pipeline.profile import Sampling, profile

    sampling = Sampling(
        samples=samples, tokens=tokens, seed=seed, split_at=split_at,
        chat_template=bool(chat_template), trust_remote_code=trust_remote_code,
    )  # fmt: skip
    sets, console = calibrate or ["stdlib"], Console(stderr=True)
    with engine_of(engine, address, workers) as made:
        run = partial(profile, model, sets, sampling, engine=made, threads=threads)
        with progress_on(console, quiet=quiet) as progress:
            found = run(progress=progress)
    for name, made in found.calibration.items():
        for warning in made["warnings"]:
            console.print(f"warning: {name}: {warning}", markup=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(found.to_dict() | {"advice": advise(found)}, indent=1))
    else:
        _show(found, advise(found))


def _show(found: "Profile", advice: tuple[str, ...]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    for name, made in found.calibration.items():
        table = Table(box=None, padding=(0, 1))
        for column in COLUMNS:
            table.add_column(column, justify="left" if not column else "right", no_wrap=True)
        for place in found.places:
            if name in place.portraits:
                table.add_row(*_row(place, name))
        console.print(f"{name}: {made['samples']} x {made['tokens']} tokens", markup=False)
        console.print(table)
        console.print()
    console.print(LEGEND, soft_wrap=True)
    console.print()
    for sentence in advice:
        console.print(sentence, markup=False, soft_wrap=True)


def _row(place, name: str) -> list[str]:
    x = place.portraits[name]
    return [
        _short(place.name), f"{x.absmax:.3g}", f"{x.first_absmax:.3g}", f"{x.kurtosis:.3g}",
        f"{x.max_to_median:.3g}", f"{x.top_energy_share:.0%}", f"{len(x.loud_channels)}",
        f"{x.first_massive}+{x.massive}", f"{x.whole_tensor_sqnr_db:.1f}",
        f"{x.tensor_sqnr_db:.1f}", f"{x.token_sqnr_db:.1f}",
    ]  # fmt: skip


def _short(name: str) -> str:
    """`model.layers.3.self_attn.q_proj, self_attn.k_proj` -> `3.self_attn.q_proj ..`."""
    first, comma, _ = name.partition(", ")
    parts = first.split(".")
    numbers = [index for index, part in enumerate(parts) if part.partition(" ")[0].isdigit()]
    short = ".".join(parts[numbers[0] :] if numbers else parts) + (" .." if comma else "")
    return short.replace("(residual in)", "residual").replace(" (residual)", "")
