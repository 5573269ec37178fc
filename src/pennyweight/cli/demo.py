"""`pennyweight demo`: the bundled model, quantized, measured, and shown writing Python."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def demo_command(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Where the quantized model goes; replaced if it is a demo's."
        ),
    ] = Path("demo"),
    scheme: Annotated[str, typer.Option(help="Scheme to show.")] = "W4A16_g128",
) -> None:
    """Quantize the bundled model, measure it against the original, and let both write."""
    from pennyweight.cli.eval import show
    from pennyweight.cli.progress import Bar
    from pennyweight.cli.quantize import show_result
    from pennyweight.pipeline.demo import run_demo
    from pennyweight.report.demo import report_demo

    console, errors = Console(highlight=False), Console(stderr=True)
    with Bar(errors) as bar:
        demo = run_demo(output, scheme, progress=bar)
    console.rule("before and after")
    show(demo.evaluation, console)
    for title, text in (("the original writes", demo.before), ("quantized, it writes", demo.after)):
        console.rule(title)
        console.print(text, markup=False)
    console.rule("proof")
    show_result(demo.result, console)
    page = report_demo(demo, command=f"pennyweight demo -o {output} --scheme {scheme}")
    console.print(f"report: {page} (open it in a browser)", markup=False, soft_wrap=True)
