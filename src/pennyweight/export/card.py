"""The model card: what was done, how large it is, what was proven, how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CARD = """\
---
base_model: {model}
tags: [quantized, compressed-tensors, pennyweight]
---

# {model}, quantized: {schemes}

| | before | after |
| --- | --- | --- |
| size | {before} | {after} |

{how}

## Proof

- {source_tensors} tensors in the source: {quantized} quantized, {copied} copied bit for
  bit{dropped}.
- {equal} quantized weights decode from these files to exactly what was computed, by our reader
  and by the compressed-tensors library.
- {logits}
{fallbacks}
`proof.json` has the facts; `plan.json` repeats the run:
`pennyweight quantize MODEL --plan plan.json -o OUT`.

## Run it

    vllm serve .

    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig
    config = CompressedTensorsConfig(dequantize=True)
    AutoModelForCausalLM.from_pretrained(".", quantization_config=config)
"""


def model_card(
    *,
    model: str,
    schemes: Mapping[str, int],
    sizes: tuple[int, int],
    proof: Mapping[str, Any],
    calibration: Mapping[str, Any] | None,
    fallbacks: Mapping[str, str],
) -> str:
    """README.md of a quantized checkpoint."""
    census, dropped = proof["census"], proof["census"]["dropped_files"]
    left = "".join(f"\n  Left out: {file} ({why})." for file, why in dropped.items())
    listed = "".join(f"- {name}: {why}\n" for name, why in fallbacks.items())
    return CARD.format(
        model=model,
        schemes=", ".join(f"{name} ({count} linears)" for name, count in schemes.items()),
        before=readable_bytes(sizes[0]),
        after=readable_bytes(sizes[1]),
        how=_calibrated(calibration),
        source_tensors=census["source_tensors"],
        quantized=census["quantized"],
        copied=census["copied_bit_for_bit"],
        dropped=left,
        equal=proof["weights"]["equal_bit_for_bit"],
        logits=describe_logits(proof["logits"]),
        fallbacks=f"\nRounded to nearest instead of as planned:\n\n{listed}" if fallbacks else "",
    )


def _calibrated(calibration: Mapping[str, Any] | None) -> str:
    if calibration is None:
        return "No calibration data was used."
    sources = ", ".join(calibration["sources"])
    return (
        f"Calibrated on {calibration['samples']} samples of {calibration['tokens']} tokens of "
        f"{sources} "
        f"(seed {calibration['seed']}, SHA-256 of the token ids {calibration['digest'][:16]})."
    )


def describe_logits(logits: Mapping[str, Any]) -> str:
    """One sentence on the reload."""
    if "skipped" in logits:
        return f"The reload in transformers was not tried: {logits['skipped']}."
    if logits["largest_difference"] == 0:
        how = "equal those of the model that was computed, bit for bit"
    else:
        how = (
            f"differ by at most {logits['largest_difference']:.2g} from the model that was computed"
        )
    return f"Reloaded by {logits['by']}, the logits of {logits['tokens']} tokens {how}."


def readable_bytes(count: int | float) -> str:
    """A size with a decimal unit, as file managers and the Hub show it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
