"""auto-round's AutoScheme: 2 to 8 bits for each linear by a score of its own, then 200 tuned steps.

.venv-peers/auto_round/bin/python bench/peers/auto_round_scheme.py MODEL DENSE --bits 3.5 \\
    --group 128 --calibrate tokens.json

--bits is the mean of everything stored, which the scheme may not exceed. The choice is written to
DENSE/choice.json, linear -> bits, without which it could not be carried out by another quantizer.
Its scores want text, which is the calibration tokens decoded, cut to half their length so that
none of them falls short of it.
"""

import json
import tempfile
from pathlib import Path

import torch
from auto_round import AutoRound, AutoScheme
from auto_round.schemes import QuantizationScheme
from common import Request, linears, mean_bits, request
from transformers import AutoTokenizer

WIDTHS = (2, 3, 4, 5, 6, 8)
SCALE_BITS = 16  # a float16 scale, and a zero point of as many bits as a code, for each group


def choose(asked: Request, texts: Path) -> dict[str, int]:
    """Linear -> bits. It is asked to round at once, the quickest way to its choice."""
    model = asked.load(torch.float32)
    options = [
        QuantizationScheme(
            bits=bits, group_size=asked.group_size or -1, sym=False, data_type="int", act_bits=16
        )
        for bits in WIDTHS
    ]
    size = {"nsamples": len(asked.tokens), "seqlen": len(asked.tokens[0]) // 2}
    scheme = AutoScheme(
        avg_bits=asked.bits, options=options, dataset=str(texts), device_map="cpu",
        enable_torch_compile=False, **size,
    )  # fmt: skip
    rounder = AutoRound(
        model, AutoTokenizer.from_pretrained(asked.model), scheme=scheme, device_map="cpu",
        enable_torch_compile=False, dataset=str(texts), iters=0, disable_opt_rtn=True, **size,
    )  # fmt: skip
    _, chosen = rounder.quantize()
    choice = {name: chosen[name]["bits"] for name, _ in linears(model)}
    left = [name for name, bits in choice.items() if bits not in WIDTHS]
    if left:
        raise SystemExit(f"{len(left)} of {len(choice)} linears were left unquantized: {left[:3]}")
    return choice


def main() -> None:
    asked = request(__doc__)
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.json"
        texts.write_text(json.dumps([tokenizer.decode(ids) for ids in asked.tokens]))
        choice = choose(asked, texts)
    model = asked.load(torch.float32)
    names = {linear: name for name, linear in linears(model)}

    def stored(linear: torch.nn.Linear) -> float:
        bits = choice[names[linear]]
        return bits + (SCALE_BITS + bits) / asked.group_of(linear)

    bits = mean_bits(model, stored)
    tuner = AutoRound(
        model, tokenizer, bits=4, group_size=asked.group_size or -1, sym=False, device_map="cpu",
        layer_config={name: {"bits": bits} for name, bits in choice.items()},
        enable_torch_compile=False, dataset=asked.batches, nsamples=len(asked.batches),
        seqlen=len(asked.tokens[0]),
    )  # fmt: skip
    tuned, _ = tuner.quantize()
    asked.save({name: tuned.get_submodule(name).weight for name in choice}, bits)
    (asked.dense / "choice.json").write_text(json.dumps(choice))


if __name__ == "__main__":
    main()
