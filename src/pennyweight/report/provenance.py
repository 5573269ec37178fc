"""Where every number comes from: plans, seeds, versions, commands, machines."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from pennyweight import records
from pennyweight.export.card import readable_bytes
from pennyweight.report.content import Facts, Heading, Part, Section, Table
from pennyweight.report.material import Material, Model
from pennyweight.report.words import UNKNOWN, number

TITLE = "Where this comes from"
DIGEST = 16  # characters of a digest that are shown; the files have all


def section(material: Material) -> Section:
    parts: list[Part] = []
    for model in material.models:
        parts += [Heading(text=model.name), Facts(rows=tuple(_model(model)))]
    if measured := _measured(material):
        parts += [Heading(text="Measurements"), measured]
    parts += [Heading(text="This page"), Facts(rows=tuple(_page(material)))]
    return Section(name="provenance", title=TITLE, parts=tuple(parts))


def _model(model: Model) -> Iterator[tuple[str, str]]:
    plan, proof = model.plan, model.proof
    size = proof.proof.size
    yield "directory", str(model.path)
    yield "made from", f"{plan.model} ({plan.dtype}, files {plan.fingerprint[:DIGEST]})"
    yield "plan", f"{proof.plan[:DIGEST]}, seed {plan.seed}"
    yield "methods", ", ".join(_methods(model)) or "none"
    yield "calibration", _calibration(proof.calibration)
    yield (
        "size",
        f"{readable_bytes(size.bytes_before)} to {readable_bytes(size.bytes_after)}, "
        f"{number(size.bits_per_weight, 4)} bits a quantized weight with scales and all else",
    )
    yield "proof", "; ".join(_proof(model))
    if plan.versions:
        yield "versions", ", ".join(f"{name} {v}" for name, v in plan.versions.items())
    path, source = shlex.quote(str(model.path)), shlex.quote(plan.model)
    yield "again", f"`pennyweight quantize {source} --plan {path}/plan.json -o OUT`"
    yield "prove", f"`pennyweight prove {path} --source {source}`"


def _methods(model: Model) -> Iterator[str]:
    yield from dict.fromkeys(rewrite.name for rewrite in model.plan.transforms)
    yield from dict.fromkeys(training.name for training in model.plan.trainings)
    yield from dict.fromkeys(f"{task.quantizer} to {task.scheme}" for task in model.plan.tasks)


def _calibration(found: Any) -> str:
    if not found:
        return "none needed"
    sources = ", ".join(map(str, found.get("sources", [])))
    said = f"{sources}, {found.get('samples')} samples of {found.get('tokens')} tokens, seed "
    said += f"{found.get('seed')}, token ids {str(found.get('digest', ''))[:DIGEST]}"
    warnings = found.get("warnings") or []
    return said + "".join(f"; warning: {each}" for each in warnings)


def _proof(model: Model) -> Iterator[str]:
    proof = model.proof.proof
    census, weights, logits = proof.census, proof.weights, proof.logits
    if census:
        yield (
            f"{census.get('quantized')} tensors quantized, {census.get('copied_bit_for_bit')} "
            "copied bit for bit, none missing"
        )
    if weights:
        readers = " and ".join(weights.get("readers", []))
        yield f"{weights.get('equal_bit_for_bit')} weights decode to what was computed ({readers})"
    if "skipped" in logits:
        yield f"not reloaded: {logits['skipped']}"
    elif logits:
        yield (
            f"reloaded by {logits.get('by')}, logits of {logits.get('tokens')} tokens differ by "
            f"{_number(logits.get('largest_difference'))} at most "
            f"({_number(logits.get('allowed'))} allowed)"
        )


def _number(value: Any) -> str:
    return number(value) if isinstance(value, int | float) else UNKNOWN


def _measured(material: Material) -> Table | None:
    """A row for each study in the stores."""
    studies: dict[str, list[Any]] = {}
    for record in material.records:
        studies.setdefault(record.study, []).append(record)
    rows = []
    for study, found in studies.items():
        dates = sorted(r.made_at[:10] for r in found if r.made_at)
        time = sum({r.key: r.wall_time_s or 0.0 for r in found}.values())
        peak = max((r.peak_bytes or 0 for r in found), default=0)
        rows.append((
            study, f"{len(found)}", _seeds(found), " to ".join(sorted({*dates[:1], *dates[-1:]})),
            f"{time:.0f} s", readable_bytes(peak) if peak else UNKNOWN, _joined(found, "machine"),
            "; ".join(sorted({_versions(r.versions) for r in found})),
        ))  # fmt: skip
    if not rows:
        return None
    return Table(
        caption=f"Records of {', '.join(material.stores)}",
        head=("study", "records", "seeds", "made", "time", "peak memory", "machine", "versions"),
        rows=tuple(rows),
        words=frozenset({0, 2, 3, 6, 7}),
    )


def _seeds(found: list[Any]) -> str:
    return ", ".join(str(s) for s in sorted({r.seed for r in found if r.seed is not None}))


def _joined(found: list[Any], field: str) -> str:
    return "; ".join(sorted({getattr(r, field) for r in found} - {""})) or UNKNOWN


def _versions(versions: Any) -> str:
    shown = ("pennyweight", "commit", "torch", "transformers")
    return ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)


def _page(material: Material) -> Iterator[tuple[str, str]]:
    made = records.provenance()
    if material.command:
        yield "command", f"`{material.command}`"
    yield "made", f"{made['made_at']} on {made['machine']}"
    yield "versions", ", ".join(f"{name} {v}" for name, v in made["versions"].items())
    yield (
        "bounds",
        (
            f"the verdict allows {material.budget_percent:g} % of the reference's perplexity and "
            "task scores; intervals are of 95 %"
        ),
    )
