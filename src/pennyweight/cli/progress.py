"""Progress on stderr: a bar on a terminal, a line per block elsewhere."""

import time
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pennyweight.core.progress import Progress as Quiet


def progress_on(console: Console, *, quiet: bool) -> AbstractContextManager[Quiet]:
    """What the option --quiet asks for."""
    return nullcontext(Quiet()) if quiet else Bar(console)


class Bar(Quiet):
    """A bar over linears with block, linear, loss, ETA and peak memory."""

    def __init__(self, console: Console) -> None:
        self.console, self.blocks, self.peak = console, 0, 0
        self.bar = Progress(
            TextColumn("block {task.fields[block]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[peak]}"),
            TextColumn("{task.fields[name]}"),
            console=console,
            transient=True,
        )

    def __enter__(self) -> "Bar":
        if self.console.is_interactive:  # elsewhere even an empty bar leaves an empty line
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_interactive:
            self.bar.stop()

    def begin(self, *, blocks: int, done: int, linears: int) -> None:
        if done:
            self.say(f"{done} of {blocks} blocks are finished from an earlier run")
        self.blocks, self.started = blocks, time.monotonic()
        self.task = self.bar.add_task("", total=linears, block=f"{done}/{blocks}", name="", peak="")
        self.losses: list[float] = []

    def linear(self, *, block: int, name: str, loss: float, metric: str) -> None:
        self.losses.append(loss)
        text = f"{name.removesuffix('.weight')}  {metric} error {loss:.2%}"
        self.bar.update(self.task, advance=1, name=text, block=f"{block + 1}/{self.blocks}")

    def block(self, *, index: int, peak_bytes: int) -> None:
        peak = f"{peak_bytes / 2**30:.2f} GiB"
        self.bar.update(self.task, peak=peak)
        if self.losses:
            mean, elapsed = sum(self.losses) / len(self.losses), time.monotonic() - self.started
            self.say(
                f"block {index + 1}/{self.blocks}: mean error {mean:.3%}, peak {peak}, "
                f"{elapsed:.0f} s"
            )
        self.losses = []

    def say(self, message: str) -> None:
        self.console.print(message, highlight=False, markup=False)
