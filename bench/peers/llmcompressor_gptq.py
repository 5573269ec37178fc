"""Quantize with llm-compressor on the CPU and print what it cost, as one line of JSON.

    .venv-peers/llmcompressor/bin/python bench/peers/llmcompressor_gptq.py \\
        MODEL OUT --scheme W4A16_g128 --calibrate tokens.json

Runs in the peer's environment, so it imports nothing of ours. The scheme is spelled our way, the
calibration is token ids rather than text, and lm_head stays as it is, so that both tools do the
same work on the same tokens. All else is llm-compressor's default unless a flag says otherwise.
"""

import argparse
import json
import re
import resource
import time
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer


def parse_scheme(scheme: str) -> QuantizationScheme:
    """`W4A16_g128_asym` as compressed-tensors has it; without `_g`, one scale for a whole row."""
    match = re.fullmatch(r"W(\d)A16(?:_g(\d+))?(_asym)?", scheme)
    if match is None:
        raise SystemExit(
            f"{scheme}: expected W<bits>A16, W<bits>A16_g<size>, and _asym after either"
        )
    bits, group_size, asymmetric = match.groups()
    weights = QuantizationArgs(
        num_bits=int(bits),
        symmetric=asymmetric is None,
        strategy="group" if group_size else "channel",
        group_size=int(group_size) if group_size else None,
    )
    return QuantizationScheme(targets=["Linear"], weights=weights)


def build_modifier(args: argparse.Namespace) -> GPTQModifier | QuantizationModifier:
    common = {"config_groups": {"group_0": parse_scheme(args.scheme)}, "ignore": ["lm_head"]}
    if args.quantizer == "rtn":
        return QuantizationModifier(**common)
    if args.act_order != "default":
        common["actorder"] = None if args.act_order == "none" else args.act_order
    return GPTQModifier(dampening_frac=args.damp, **common)


def load_batches(path: Path, samples: int | None) -> DataLoader:
    """One sequence a batch: nothing is padded, and so no padding is counted as data."""
    sequences = [torch.tensor(ids) for ids in json.loads(path.read_text())[:samples]]
    return DataLoader(
        [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in sequences],
        batch_size=1,
    )


def save_dense(model: Path, compressed: Path, dense: Path) -> None:
    """The same numbers as plain weights, unpacked by the peer: our reader has no part in it."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    quantized = AutoModelForCausalLM.from_pretrained(compressed, dtype="auto")
    quantized(torch.zeros(1, 1, dtype=torch.long))  # weights are unpacked at the first forward
    state = quantized.state_dict()
    names = plain.state_dict().keys() & state.keys()
    missing = (
        plain.state_dict().keys() - names - {"lm_head.weight"}
    )  # absent where it is the embedding
    if missing:
        raise SystemExit(f"{compressed}: not found after decompression: {sorted(missing)}")
    plain.load_state_dict({name: state[name] for name in names}, strict=False)
    plain.save_pretrained(dense)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scheme", default="W4A16_g128")
    parser.add_argument("--quantizer", choices=["gptq", "rtn"], default="gptq")
    parser.add_argument(
        "--calibrate", type=Path, help="JSON, a list of lists of token ids; needed by gptq"
    )
    parser.add_argument("--samples", type=int, help="how many of them; all by default")
    parser.add_argument("--damp", type=float, default=0.01)
    parser.add_argument(
        "--act-order", choices=["default", "none", "static", "group", "weight"], default="default"
    )
    parser.add_argument("--dense", type=Path, help="also write the dequantized model here, untimed")
    args = parser.parse_args()

    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    loaded = time.perf_counter()
    # The processor is only needed to tokenize, which is done; None would make oneshot look for one.
    data = (
        {"dataset": load_batches(args.calibrate, args.samples), "processor": object()}
        if args.calibrate
        else {}
    )
    oneshot(model=model, recipe=build_modifier(args), **data)
    quantized = time.perf_counter()
    model.save_pretrained(args.out, save_compressed=True)
    saved = time.perf_counter()
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if (args.model / "tokenizer.json").exists():
        AutoTokenizer.from_pretrained(args.model).save_pretrained(args.out)
    if args.dense:
        save_dense(args.model, args.out, args.dense)
        if (args.model / "tokenizer.json").exists():
            AutoTokenizer.from_pretrained(args.model).save_pretrained(args.dense)
    result = {
        "quantize_s": quantized - loaded,
        "total_s": saved - start,
        "peak_rss_bytes": peak_kib * 1024,
        "bytes_on_disk": sum(file.stat().st_size for file in args.out.glob("*.safetensors")),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
