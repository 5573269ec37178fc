"""The report that ends the demo: its measurements and texts as files, and the page of them."""

from __future__ import annotations

import json
from pathlib import Path

from pennyweight.model.writer import write_text
from pennyweight.pipeline.demo import PROMPT, Demo
from pennyweight.report.material import EVALUATION, SAMPLES, Sources, gather
from pennyweight.report.report import write_report

PAGE = "report.html"


def report_demo(demo: Demo, *, command: str = "") -> Path:
    """Write the page into the directory of the demo, beside what it is made from."""
    folder = demo.result.path
    evaluation = json.dumps(demo.evaluation.to_dict(), indent=1)
    write_text(folder / EVALUATION, f"{evaluation}\n")
    prompt = PROMPT if all(t.startswith(PROMPT) for t in (demo.before, demo.after)) else ""
    sample = {
        "name": "drawn at temperature 0.5 with the same luck", "prompt": prompt,
        "reference": demo.before.removeprefix(prompt), "model": demo.after.removeprefix(prompt),
    }  # fmt: skip
    write_text(folder / SAMPLES, f"{json.dumps(sample)}\n")
    write_report(gather(Sources(directories=(folder,)), command=command), folder / PAGE)
    return folder / PAGE
