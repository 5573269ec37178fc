"""Run `quantize` in a process of its own and kill it with SIGKILL at a chosen moment.

A fork server has everything imported already, so a process costs a few milliseconds and not the
seconds that torch takes to import.
"""

import multiprocessing
import os
import signal
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pennyweight.pipeline.quantize", "tests.end_to_end.killed"])


def run_killed(recipe, output: Path, moment: str, count: int) -> bool:
    """Whether the process was killed; False if it ended before the moment came.

    moment: `before` or `after` the count-th file is put in place, or `within` the count-th write of
    a tensor.
    """
    process = CONTEXT.Process(target=_quantize, args=(recipe, output, moment, count))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode == -signal.SIGKILL


def _quantize(recipe, output: Path, moment: str, count: int) -> None:
    from pennyweight.model import writer
    from pennyweight.pipeline import quantize as verb

    left = iter(range(count - 1, -2, -1))

    def die_when_it_is_time() -> None:
        if next(left, -1) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    replace = os.replace

    def replace_and_die(source, target) -> None:
        if moment == "before":
            die_when_it_is_time()
        replace(source, target)
        if moment == "after":
            die_when_it_is_time()

    def dying(entries, metadata):
        for entry in entries:
            object.__setattr__(entry, "make", _after(die_when_it_is_time, entry.make))
        return header(entries, metadata)

    if moment == "within":
        header = writer._header
        writer._header = dying
    else:
        os.replace = replace_and_die
    verb.quantize(recipe, output, threads=2)


def _after(first, second):
    def both():
        first()
        return second()

    return both
