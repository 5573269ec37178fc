"""`pennyweight check`: what would happen, before anything heavy does."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pennyweight.cli.options import (
    CalibrateOn,
    ChatTemplate,
    ModelOrRecipes,
    Overrides,
    QuantizerName,
    RecipeFile,
    Samples,
    SchemeName,
    SplitAt,
    Tokens,
    TrustRemoteCode,
    recipe_from,
)


def check_command(
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
    trust_remote_code: TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Sizes, estimates and warnings for quantizing MODEL; reads headers, and weights only where a
    rule chooses between schemes."""
    from pennyweight.pipeline.check import check

    report = check(
        recipe_from(
            model,
            recipe,
            overrides,
            rule={"scheme": scheme, "quantizer": quantizer},
            calibrate={
                "data": calibrate,
                "samples": samples,
                "tokens": tokens,
                "split_at": split_at,
                "chat_template": chat_template,
            },
            top={"trust_remote_code": trust_remote_code or None},
        )
    )
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=1))
    else:
        _show(report)


def _show(report) -> None:
    from pennyweight.export.card import readable_bytes

    console, table = Console(highlight=False), Table(box=None, show_header=False)
    schemes = ", ".join(f"{name} ({count} tensors)" for name, count in report.schemes.items())
    rows = [
        ("size", f"{readable_bytes(report.bytes_before)} -> {readable_bytes(report.bytes_after)}"),
        (
            "parameters",
            f"{report.parameters / 1e6:.4g} million, {report.quantized_share:.1%} quantized",
        ),
        ("schemes", schemes),
        ("bits per weight", f"{report.bits_per_weight:.3f} of everything that is stored"),
        ("peak memory", f"about {report.estimated_peak_bytes / 2**30:.1f} GiB"),
        ("disk", f"about {readable_bytes(report.estimated_disk_bytes)} while it runs"),
        ("time", f"about {_minutes(report.estimated_time_s)} on two cores"),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print("left as they are:")
    for why, count in sorted(report.kept.items()):
        console.print(f"  {count} x {why}, {readable_bytes(report.kept_bytes[why])}")
    for warning in report.warnings:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
