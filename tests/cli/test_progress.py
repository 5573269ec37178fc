"""A bar on a terminal, few lines elsewhere, and nothing that stays behind."""

from io import StringIO

import pytest
from rich.console import Console

from pennyweight.cli import progress
from pennyweight.cli.progress import Bar, progress_on


def console(terminal: bool) -> Console:
    return Console(file=StringIO(), force_terminal=terminal, force_interactive=terminal, width=100)


def shown(bar: Bar) -> str:
    assert isinstance(bar.console.file, StringIO)
    return bar.console.file.getvalue()


def test_measurements_are_a_bar_on_a_terminal():
    with Bar(console(True)) as bar:
        for done in (1, 2, 3):
            bar.measured(f"unit {done}: 0.1 nats", done=done, total=3)
        (task,) = bar.bar.tasks
        assert (task.completed, task.total, task.fields["name"]) == (3, 3, "unit 3: 0.1 nats")
    assert "unit 3: 0.1 nats" in shown(bar) and "3 of 3" not in shown(bar)


@pytest.mark.parametrize("every", [0.0, 1000.0])
def test_elsewhere_they_are_lines_now_and_then(monkeypatch, every):
    monkeypatch.setattr(progress, "EVERY_S", every)
    with Bar(console(False)) as bar:
        for done in (1, 2, 3):
            bar.measured("a [b] c", done=done, total=3)
    lines = ["1 of 3: a [b] c", "2 of 3: a [b] c"] if every == 0 else []
    assert shown(bar).splitlines() == [*lines, "3 of 3: a [b] c"]


def test_one_bar_takes_the_place_of_another():
    with Bar(console(True)) as bar:
        for _ in range(2):
            bar.begin(blocks=1, done=0, linears=2)
            bar.linear(block=0, name="a.weight", loss=0.5, metric="weight")
            bar.block(index=0, peak_bytes=2**30)
            bar.measured("x", done=1, total=1)
        (task,) = bar.bar.tasks
        assert task.fields["where"] == "measured"
    assert "block 1/1: mean error 50.000%, peak 1.00 GiB" in shown(bar)


def test_quiet_says_nothing():
    written = console(False)
    with progress_on(written, quiet=True) as silent:
        silent.measured("x", done=1, total=1)
        silent.say("x")
    assert written.file.getvalue() == ""  # type: ignore[attr-defined]
