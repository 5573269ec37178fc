"""Files that a report is made from, small and with known numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pennyweight.core.record import Record, record_key
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Recipe, Rule
from pennyweight.records import Store

EVIL = "<img src=x onerror=\"document.title='evil'\">"  # a name that would run if it were not text


def quantized(folder: Path, model: Path, *rules: tuple[str, str]) -> Path:
    """`folder`, with `model` rounded by (match, scheme)."""
    made = tuple(Rule(match=match, scheme=scheme, quantizer="rtn") for match, scheme in rules)
    return quantize(Recipe(model=str(model), rule=made), folder, threads=1).path


def eval_records(
    directory: Path, *, kl: float, change: tuple[float, float, float], against: str = "reference"
) -> list[Record]:
    """What `eval --records` keeps. change: low, value, high, in percent."""
    settings = {"context": 512, "stride": 512, "document_tokens": None}
    identity: dict[str, Any] = settings | {
        "fingerprint": Checkpoint.open(directory).fingerprint, "attention": {"kv_cache": None}
    }  # fmt: skip
    subject = identity | {
        "model": str(directory), "against": against, "data": ["text.txt"], "scored_tokens": 1234
    }  # fmt: skip
    low, value, high = change
    metrics = {
        "perplexity": (9.0, 10.0, 11.0), "kl_nats": (0.9 * kl, kl, 1.1 * kl),
        "perplexity_change_percent": (low, value, high),
        "top1_agreement_percent": (89.0, 90.0, 91.0),
    }  # fmt: skip
    return [
        Record(
            study="eval", key=record_key(identity), subject=subject, metric=name, value=middle,
            lower=least, upper=most, confidence=0.95, data="d1", seed=0, machine="a machine",
            wall_time_s=2.0, peak_bytes=10**9, made_at="2026-01-02T03:04:05+00:00",
        )
        for name, (least, middle, most) in metrics.items()
    ]  # fmt: skip


def task_record(
    directory: Path,
    *tasks: str,
    recovery: tuple[float, float, float] = (90.0, 96.0, 102.0),
    is_average: bool = False,
    **more: Any,
) -> Record:
    """What `eval --tasks --records` keeps of one task, or of several together. more: of what was
    found, as `above_chance`, or of how it was asked, as `limit`."""
    asked = {name: more.pop(name) for name in ("limit", "shots", "judging") if name in more}
    identity: dict[str, Any] = asked | {"fingerprint": Checkpoint.open(directory).fingerprint}
    identity |= {"tasks": dict.fromkeys(tasks, "d")} if is_average else {"task": tasks[0]}
    detail = {
        "score": {"low": 50.0, "value": 60.0, "high": 70.0},
        "reference": {"low": 52.0, "value": 62.5, "high": 72.0}, "floor_percent": 0.0,
    }  # fmt: skip
    low, value, high = recovery
    return Record(
        study="eval tasks", key=record_key(identity), subject=identity,
        metric="recovery_percent_average" if is_average else "recovery_percent",
        value=value, lower=low, upper=high, confidence=0.95,
        detail=detail | ({"tasks": list(tasks)} if is_average else {}) | more,
    )  # fmt: skip


def similarity_record(directory: Path) -> Record:
    identity = {"fingerprint": Checkpoint.open(directory).fingerprint}
    return Record(
        study="eval similarity", key=record_key(identity), subject=identity,
        metric="rouge1_percent", value=59.25, lower=24.0, upper=94.5, confidence=0.95,
    )  # fmt: skip


def cell_records(values: dict[tuple[str, str, int], float], model: str = "toy") -> list[Record]:
    """Of a study of calibration sets: (method, set, seed) -> nats."""
    found = []
    for (method, name, seed), value in values.items():
        subject = {"model": model, "method": method, "set": name, "samples": 8, "seed": seed}
        found.append(Record(
            study="calibration", key=record_key(subject), subject=subject, metric="kl_nats",
            value=value, seed=seed,
        ))  # fmt: skip
    return found


def store(path: Path, *records: Record) -> Path:
    Store.open(path).add(records)
    return path


def profile_file(path: Path, name: str = "stdlib") -> Path:
    portrait = {
        "kurtosis": 4.0, "max_to_median": 2.0, "absmax": 7.0, "token_sqnr_db": 42.0,
        "whole_tensor_sqnr_db": 31.0,
    }  # fmt: skip
    places = [
        {
            "name": f"model.layers.{block}.self_attn.q_proj, self_attn.k_proj", "block": block,
            "kind": "input", "portraits": {name: portrait | {"kurtosis": 4.0 + block}},
        }
        for block in range(2)
    ]  # fmt: skip
    broken = {"kurtosis": None, "max_to_median": 2.5, "absmax": 1.0,
              "token_sqnr_db": None, "whole_tensor_sqnr_db": 20.0}  # fmt: skip
    places.append({
        "name": "model.layers.1.mlp.down_proj", "block": 1, "kind": "input",
        "portraits": {name: broken},
    })  # fmt: skip
    found = {
        "model": "toy", "calibration": {name: {"samples": 2}}, "places": places,
        "outlier_features": {name: []}, "advice": ["Outliers: no handling needed."],
    }  # fmt: skip
    path.write_text(json.dumps(found))
    return path


def frontier_json(path: Path) -> Path:
    def candidate(bits: float, predicted: float, value: float, inside: bool) -> dict[str, Any]:
        return {
            "predicted": predicted, "cost": 1000 * bits, "inside": inside, "schemes": {},
            "figures": {"bits_per_weight": bits, "size_bytes": 1000 * bits},
            "measured": {"loss": {"low": value / 2, "value": value, "high": 2 * value}},
        }  # fmt: skip

    found = {
        "model": "toy", "tokens": 6000, "chosen": 1, "noise_of_16_bits": 1e-4,
        "budget": {"text": "kl<=0.02", "name": "kl", "limit": 0.02, "bounded": "loss",
                   "measured": "kl_nats"},
        "candidates": [candidate(4.5, 0.03, 0.025, False), candidate(6.0, 0.012, 0.01, True)],
        "predicted_frontier": [
            {"cost": 4000.0, "predicted": 0.05, "bits_per_weight": 4.0},
            {"cost": 8000.0, "predicted": 0.001, "bits_per_weight": 8.0},
        ],
    }  # fmt: skip
    path.write_text(json.dumps(found))
    return path


def diagnosis_file(path: Path, name: str = "toy") -> Path:
    """Two parts: of 0.10 nats down_proj wins 0.08 back, q_proj 0.01."""

    def loss(kl: float) -> dict[str, Any]:
        ends = {"low": kl / 2, "value": kl, "high": 2 * kl}
        return {"kl_nats": ends, "perplexity_change_percent": {k: 100 * v for k, v in ends.items()}}

    def part(tensor: str, alone: float, restored: float) -> dict[str, Any]:
        return {"name": tensor, "tensors": [tensor], "numbers": "int2 (rows)",
                "only_quantized": loss(alone), "only_restored": loss(restored)}  # fmt: skip

    down, query = (f"model.layers.1.{n}.weight" for n in ("mlp.down_proj", "self_attn.q_proj"))
    errors = {"block": 1, "kind": "linear", "own": 0.02, "inherited": None, "total": 0.05}
    found = {
        "reference": name, "quantized": "bad", "target": "ppl<=1%", "granularity": "matmul",
        "whole": loss(0.1), "rest": loss(0.0), "weights_only": loss(0.09),
        "activations_only": None, "parts": [part(down, 0.07, 0.02), part(query, 0.005, 0.09)],
        "errors": [errors | {"name": "model.layers.1.mlp.down_proj", "weight": 0.02}],
        "cure": {"parts": [down], "loss": {"low": 0.1, "value": 0.5, "high": 0.9},
                 "without_last": None},
        "remedies": [{"what": "Give it more bits.", "why": "It costs most.",
                      "recipe": "[[rule]]\nmatch = \"*.1.mlp.down_proj.weight\""}],
        "settings": {"tokens": 4096},
    }  # fmt: skip
    path.write_text(json.dumps(found))
    return path


def samples_file(path: Path, name: str = "one") -> Path:
    rows = [
        {"name": name, "prompt": "def", "reference": " f(x):\n  return", "model": " f(y):\n  pass"},
        {"prompt": "</pre><script>", "reference": "same", "model": "same", "first_divergence": 4},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
