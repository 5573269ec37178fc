"""Run a program that a model wrote, where it can do little harm.

A process of its own: no environment, an empty folder that is deleted afterwards, limits on
processor time, memory, files and their sizes, and where the system allows it (user namespaces of
Linux) no network. It is no prison: the program runs as this user and may read what the user may
read. Hence it runs only when asked (`--run-code`), and better in a container.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO

SECONDS = 10.0  # of the clock; HumanEval's programs take milliseconds
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20

# Limits are set by the child before it runs the program: a hook between fork and exec is not safe
# in a process with threads. The token is said only after the program has come to its end, and the
# program is not told it, so that leaving early is no way to pass.
BOOTSTRAP = """
import ctypes, resource, sys
cut_off = ctypes.CDLL(None).unshare(0x10000000 | 0x40000000) == 0  # new user and network namespaces
for limit, value in ((resource.RLIMIT_CPU, {cpu}), (resource.RLIMIT_AS, {memory}),
                     (resource.RLIMIT_FSIZE, {file}), (resource.RLIMIT_NOFILE, 32),
                     (resource.RLIMIT_NPROC, 0), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(limit, (value, value))
def main():
    token, _, program = sys.stdin.read().partition("\\n")
    say = sys.stdout.write
    exec(compile(program, "program", "exec"), {{"__name__": "program"}})
    say("\\n" + token + (" alone" if cut_off else " linked"))
main()
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a program ended."""

    passed: bool
    reason: str  # the last line of its errors, or what stopped it
    network: bool | None  # it could have reached one; None: it did not live to say


def run_program(program: str, *, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES) -> Run:
    """Run Python code; it passes if it comes to its end without an exception."""
    token = secrets.token_hex(16)  # of no result: only who says it
    bootstrap = BOOTSTRAP.format(cpu=int(seconds) + 1, memory=memory_bytes, file=FILE_BYTES)
    # Files and not pipes: what it may write to them is limited, what a pipe takes is not.
    with (
        tempfile.TemporaryDirectory(prefix="pennyweight-") as folder,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        given.write(f"{token}\n{program}".encode())
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-S", "-c", bootstrap],
            stdin=given, stdout=out, stderr=err, cwd=folder, env={}, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return Run(passed=False, reason=f"no end in {seconds:g} s", network=None)
        finally:
            _end(process)
        said, errors = _last_line(out), _last_line(err)
    passed = process.returncode == 0 and said in (f"{token} alone", f"{token} linked")
    reason = errors or ("" if passed else f"ended with {process.returncode} before its tests did")
    return Run(passed=passed, reason=reason, network=said.endswith("linked") if passed else None)


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").rstrip().rpartition("\n")[2]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the program's session."""
    with contextlib.suppress(ProcessLookupError):  # nothing is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@functools.cache
def network_cut_off() -> bool:
    """Whether programs run here without a network."""
    return run_program("pass").network is False
