"""Progress on stderr: a bar on a terminal; elsewhere a line per block, or now and then."""

import time
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pennyweight.core.progress import Progress as Quiet

EVERY_S = 10.0  # between two lines about measurements where there is no bar


def progress_on(console: Console, *, quiet: bool) -> AbstractContextManager[Quiet]:
    """What the option --quiet asks for."""
    return nullcontext(Quiet()) if quiet else Bar(console)


class Bar(Quiet):
    """A bar with ETA: over linears with block, loss and peak memory, or over measurements."""

    def __init__(self, console: Console) -> None:
        self.console, self.blocks = console, 0
        self.task: TaskID | None = None
        self.counting, self.told = False, 0.0
        self.bar = Progress(
            TextColumn("{task.fields[where]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[peak]}"),
            TextColumn("{task.fields[name]}", markup=False),
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
        self._show(linears, where=f"block {done}/{blocks}")
        self.counting, self.losses = False, list[float]()

    def linear(self, *, block: int, name: str, loss: float, metric: str) -> None:
        assert self.task is not None, "begun"
        self.losses.append(loss)
        text = f"{name.removesuffix('.weight')}  {metric} error {loss:.2%}"
        where = f"block {block + 1}/{self.blocks}"
        self.bar.update(self.task, advance=1, name=text, where=where)

    def block(self, *, index: int, peak_bytes: int) -> None:
        assert self.task is not None, "begun"
        peak = f"{peak_bytes / 2**30:.2f} GiB"
        self.bar.update(self.task, peak=peak)
        if self.losses:
            mean, elapsed = sum(self.losses) / len(self.losses), time.monotonic() - self.started
            self.say(
                f"block {index + 1}/{self.blocks}: mean error {mean:.3%}, peak {peak}, "
                f"{elapsed:.0f} s"
            )
        self.losses = []

    def measured(self, what: str, *, done: int, total: int) -> None:
        if not self.counting:
            self._show(total, where="measured")
            self.counting, self.told = True, time.monotonic()
        assert self.task is not None, "shown"
        self.bar.update(self.task, completed=done, name=what)
        if done == total:
            self.counting = False
        now = time.monotonic()
        if not self.console.is_interactive and (done == total or now - self.told >= EVERY_S):
            self.told = now
            self.say(f"{done} of {total}: {what}")

    def _show(self, total: int, where: str) -> None:
        """A bar in the place of the one before."""
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task("", total=total, where=where, name="", peak="")

    def say(self, message: str) -> None:
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)
