"""Both tools as commands, run and measured the same way: as child processes, from the outside."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PEER = ROOT / ".venv-peers" / "llmcompressor" / "bin" / "python"
PEER_SCRIPT = ROOT / "bench" / "peers" / "llmcompressor_gptq.py"
PEER_NAME = "llm-compressor"
ALL_THREADS = len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class Job:
    """One quantization that both tools can do."""

    model: Path
    scheme: str
    quantizer: str = "gptq"
    tokens: Path  # JSON, equally long lists of token ids
    threads: int = ALL_THREADS

    def ours(self, out: Path) -> list[str]:
        lists = json.loads(self.tokens.read_text())
        command = [sys.executable, "-m", "pennyweight", "quantize", str(self.model), "-o", str(out)]
        command += ["--scheme", self.scheme, "--quantizer", self.quantizer, "--quiet", "--json"]
        command += ["--threads", str(self.threads)]
        if self.quantizer == "rtn":
            return command
        size = ["--samples", str(len(lists)), "--tokens", str(len(lists[0]))]
        return [*command, "--calibrate", str(self.tokens), *size]

    def peer(self, out: Path, dense: Path | None = None) -> list[str]:
        command = [str(PEER), str(PEER_SCRIPT), str(self.model), str(out)]
        command += ["--scheme", self.scheme, "--quantizer", self.quantizer]
        if self.quantizer != "rtn":
            command += ["--calibrate", str(self.tokens)]
        return command + (["--dense", str(dense)] if dense else [])


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A finished child: everything from starting the interpreter to its exit."""

    elapsed_s: float
    peak_bytes: int
    stdout: str


def measure(command: Sequence[str], threads: int = ALL_THREADS) -> Measured:
    """Run a command with so many threads of OpenMP; stops the benchmark if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=ROOT)
        # wait4 gives the peak of this child alone; getrusage would give the largest so far.
        _, status, usage = os.wait4(child.pid, 0)
        elapsed = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if child.returncode:
            said = (out.read() + err.read())[-3000:]
            raise SystemExit(f"exit status {child.returncode}: {' '.join(command)}\n{said}")
        return Measured(elapsed_s=elapsed, peak_bytes=usage.ru_maxrss * 1024, stdout=out.read())


def last_json(stdout: str) -> dict:
    """The peer's result: its last line, after its log."""
    return json.loads(stdout.strip().splitlines()[-1])


def require_peer() -> None:
    if not PEER.exists():
        raise SystemExit("no .venv-peers/llmcompressor: run `make peers` first")


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]] = ()) -> str:
    return "\n".join(row(line) for line in [header, ["---"] * len(header), *rows])


def mib(size_bytes: float) -> str:
    return f"{size_bytes / 2**20:,.0f}"
