"""recipes/evidence.sh: from a model to the page with all that was measured of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pennyweight.records import Store

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "evidence.sh"
# What a few layers of Python code let a model tell apart: a line from the same line broken.
PAIRS = [
    (f"for {name} in range({count}):\n", f"for {name} range in({count}):\n")
    for name in ("i", "j", "index", "number") for count in (2, 3, 10)
]  # fmt: skip


def evidence(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    program = {"PENNYWEIGHT": str(Path(sys.executable).parent / "pennyweight")}
    return subprocess.run(
        ["sh", SCRIPT, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | program | environment,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [(), ("pylm",), ("pylm", "out", "train.txt")])
def test_it_says_how_it_is_used(arguments):
    done = evidence(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert "sh recipes/evidence.sh MODEL OUT [TRAIN VAL [SPLIT_AT]]" in done.stderr


@pytest.mark.slow
def test_it_shows_all_there_is_of_pylm(tmp_path):
    rows = [{"sentence_good": good, "sentence_bad": bad} for good, bad in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    out, tasks = tmp_path / "out", str(tmp_path / "pairs.jsonl")
    done = evidence("pylm", out, TASKS=tasks)
    assert done.returncode == 0, done.stderr
    page = (out / "report.html").read_text(encoding="utf-8")
    left_out = page.partition("Left out for want of data")[2].partition("</footer>")[0]
    assert left_out.count("<b>") == 1 and "The plan and what it was chosen from" in left_out
    for part in ("summary", "quality", "pareto", "blocks", "diagnosis", "outliers", "calibration",
                 "generations", "provenance"):  # fmt: skip
        assert f'<section id="{part}"' in page, part
    assert page.count('class="badge ') == 4, "two models, each by texts and by tasks"
    count = len(Store.existing(out / "records.sqlite").find())
    again = evidence("pylm", out, TASKS=tasks)
    assert again.returncode == 0, again.stderr
    assert "24 of 24 results are there already" in again.stderr
    assert again.stderr.count("resumed: all numbers are from") == 2, "the texts of two versions"
    assert len(Store.existing(out / "records.sqlite").find()) == count
