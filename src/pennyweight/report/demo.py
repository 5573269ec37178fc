"""The report that ends the demo: its measurements and texts as files, and the page of them."""

from __future__ import annotations

import json
from pathlib import Path

from pennyweight.model.writer import write_text
from pennyweight.pipeline.demo import PROMPT, Demo, Version
from pennyweight.report.material import EVALUATION, SAMPLES, Sources, gather
from pennyweight.report.report import write_report

PAGE = "report.html"


def report_demo(demo: Demo, *, command: str = "") -> Path:
    """Write the page into the folder of the demo, beside the models that it is about."""
    for version in demo.versions:
        evaluation = json.dumps(version.evaluation.to_dict(), indent=1)
        write_text(version.result.path / EVALUATION, f"{evaluation}\n")
        write_text(version.result.path / SAMPLES, f"{json.dumps(_sample(demo, version))}\n")
    directories = tuple(version.result.path for version in demo.versions)
    material = gather(Sources(directories=directories, plan=demo.plan), command=command)
    write_report(material, demo.folder / PAGE)
    return demo.folder / PAGE


def _sample(demo: Demo, version: Version) -> dict[str, str]:
    texts = (demo.original_writes, version.writes)
    prompt = PROMPT if all(text.startswith(PROMPT) for text in texts) else ""
    original, writes = (text.removeprefix(prompt) for text in texts)
    return {
        "name": "drawn at temperature 0.5 with the same luck", "prompt": prompt,
        "reference": original, "model": writes,
    }  # fmt: skip
