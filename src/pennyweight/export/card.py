"""The model card: what was done, how large it is, what was proven, how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CARD = """\
---
base_model: {model}
tags: [quantized, {target}, pennyweight]
---

# {model}, quantized: {schemes}

| | before | after |
| --- | --- | --- |
| size | {before} | {after} |

{bits:.3f} bits per quantized weight, scales and everything else that belongs to them counted.

{how}

## Proof

- {source_tensors} tensors in the source: {quantized} quantized, {copied} copied bit for
  bit{rewritten}{dropped}.
- {equal} quantized weights decode from these files to exactly {exact}, by
  {readers}.
- {logits}
{fallbacks}
`proof.json` has the facts; `plan.json` repeats the run:
`pennyweight quantize MODEL --plan plan.json -o OUT`.

## Run it

{run}"""


EXACT = ("what was computed", "what was computed, rounded to the dtype of the source")
READERS = {
    "pennyweight": "our reader",
    "compressed-tensors": "the compressed-tensors library",
}
RUN = {
    "compressed-tensors": """\
    vllm serve .

    from transformers import {loader}
    from transformers.utils.quantization_config import CompressedTensorsConfig
    config = CompressedTensorsConfig(dequantize=True)
    {loader}.from_pretrained(".", quantization_config=config)
""",
    "packed": """\
These files are in Pennyweight's own layout, which holds any scheme; `pennyweight export` writes
them out for other programs from a work directory that was kept.

    pennyweight eval . --against {model}
""",
    "dense": """\
The weights are written out in their source's dtype: any engine that runs {model} runs them, at the
size of the source. Activations are not rounded.

    vllm serve .
""",
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a run made."""

    model: str
    schemes: Mapping[str, int]  # scheme -> linears
    loader: str = "AutoModelForCausalLM"  # the class of transformers that builds it
    size: Mapping[str, Any]  # bytes before and after, bits per quantized weight
    target: str  # the layout


def model_card(
    made: Made,
    *,
    proof: Mapping[str, Any],
    calibration: Mapping[str, Any] | None,
    fallbacks: Mapping[str, str],
) -> str:
    """README.md of a quantized checkpoint."""
    census, dropped = proof["census"], proof["census"]["dropped_files"]
    left = "".join(f"\n  Left out: {file} ({why})." for file, why in dropped.items())
    listed = "".join(f"- {name}: {why}\n" for name, why in fallbacks.items())
    return CARD.format(
        model=made.model,
        schemes=", ".join(f"{name} ({count} linears)" for name, count in made.schemes.items()),
        before=readable_bytes(made.size["bytes_before"]),
        after=readable_bytes(made.size["bytes_after"]),
        how=_calibrated(calibration),
        source_tensors=census["source_tensors"],
        quantized=census["quantized"],
        copied=census["copied_bit_for_bit"],
        rewritten=f", {census['rewritten_by_transforms']} rewritten by transforms"
        if census["rewritten_by_transforms"]
        else "",
        dropped=left,
        equal=proof["weights"]["equal_bit_for_bit"],
        exact=EXACT[made.target == "dense"],
        readers=" and ".join(READERS[name] for name in proof["weights"]["readers"]),
        target=made.target,
        bits=made.size["bits_per_weight"],
        run=RUN[made.target].format(model=made.model, loader=made.loader),
        logits=describe_logits(proof["logits"]),
        fallbacks=f"\nNot as planned, for want of calibration tokens:\n\n{listed}"
        if listed
        else "",
    )


def _calibrated(calibration: Mapping[str, Any] | None) -> str:
    if calibration is None:
        return "No calibration data was used."
    sources = ", ".join(calibration["sources"])
    samples = [f"{calibration['samples']} samples of {calibration['tokens']} tokens"]
    if count := calibration.get("whole_samples"):
        samples = samples if calibration["samples"] else []
        images, tokens = calibration["with_images"], calibration["whole_tokens"]
        samples += [f"{count} whole samples ({tokens} tokens), {images} of them with images,"]
    return (
        f"Calibrated on {' and '.join(samples)} of {sources} "
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
    said = f"Reloaded by {logits['by']}, the logits of {logits['tokens']} tokens {how}."
    if image := logits.get("with_image"):
        said += " The same with an image among them: " + (
            f"not tried, as {image['skipped']}."
            if "skipped" in image
            else f"largest difference {image['largest_difference']:.2g}."
        )
    return said


def readable_bytes(count: int | float) -> str:
    """A size with a decimal unit, as file managers and the Hub show it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
