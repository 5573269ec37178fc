"""`pennyweight demo`: the bundled model, quantized, measured, and shown writing Python."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pennyweight.evaluate import Interval
    from pennyweight.pipeline.demo import Demo


def demo_command(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Where all of it goes; replaced if it is a demo's."),
    ] = Path("demo"),
    scheme: Annotated[str, typer.Option(help="Scheme to show.")] = "W4A16_g128",
    budget: Annotated[str, typer.Option(help="What the planned one may lose.")] = "kl<=0.01",
) -> None:
    """Quantize the bundled model in one scheme and by plan, measure both, let them write."""
    from pennyweight.cli.progress import Bar
    from pennyweight.cli.quantize import show_result
    from pennyweight.report.demo import report_demo
    from pennyweight.study.planning.demo import run_demo

    console, errors = Console(highlight=False), Console(stderr=True)
    with Bar(errors) as bar:
        demo = run_demo(output, scheme, budget, progress=bar)
    console.rule("before and after")
    console.print(_table(demo))
    shown = [("the original", demo.original_writes)]
    shown += [(version.title, version.writes) for version in demo.versions]
    for title, text in shown:
        console.rule(f"{title} writes")
        console.print(text, markup=False)
    console.rule("proof")
    for version in demo.versions:
        show_result(version.result, console)
    command = f"pennyweight demo -o {output} --scheme {scheme} --budget '{budget}'"
    page = report_demo(demo, command=command)
    console.print(f"plan: {demo.plan}", markup=False, soft_wrap=True)
    console.print(f"report: {page} (open it in a browser)", markup=False, soft_wrap=True)


def _table(demo: "Demo") -> Table:
    """The original and its versions; every interval is of 95 %."""
    titles = ["original", *(version.title for version in demo.versions)]
    table = Table("", *titles, caption="95 % intervals; held-out modules, none seen by the plan")
    found = [version.evaluation for version in demo.versions]
    compared = [each.comparison for each in found if each.comparison is not None]
    assert len(compared) == len(found), "the demo measures against the original"
    first = compared[0]
    sizes = [f"{v.result.proof['size']['bits_per_weight']:.3f}" for v in demo.versions]
    table.add_row("bits a quantized weight", "16", *sizes)
    table.add_row(
        "perplexity", _shown(first.perplexity, ".2f"), *(_shown(e.perplexity, ".2f") for e in found)
    )
    rows = {
        "change of perplexity, %": ("perplexity_change_percent", "+.2f"),
        "KL divergence, nats": ("kl_nats", ".4f"),
        "same top token, %": ("top1_agreement_percent", ".1f"),
    }
    for name, (metric, form) in rows.items():
        table.add_row(name, "", *(_shown(getattr(c, metric), form) for c in compared))
    return table


def _shown(interval: "Interval", form: str) -> str:
    return f"{interval.value:{form}} ({interval.low:{form}} to {interval.high:{form}})"
