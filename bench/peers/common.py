"""What the peers' scripts share. Runs in their environments, so it imports nothing of ours.

Each script takes the same arguments and leaves the same thing: the model with the peer's quantized
weights written out as plain ones, and one line of JSON. The peer decodes its own weights, so that
our reader has no part in the comparison.
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class Request:
    model: Path
    dense: Path
    bits: float  # a whole number for uniform widths
    group_size: int | None  # None: one scale a row
    tokens: list[list[int]]
    started: float = field(default_factory=time.perf_counter)

    def load(self, dtype: str | torch.dtype = "auto") -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=dtype).eval()

    def group_of(self, linear: nn.Linear) -> int:
        """The group size, or the whole row where it does not divide it."""
        size = self.group_size
        return size if size and linear.in_features % size == 0 else linear.in_features

    @property
    def batches(self) -> list[torch.Tensor]:
        """Token ids [1, tokens] each."""
        return [torch.tensor([ids]) for ids in self.tokens]

    def save(
        self,
        weights: dict[str, torch.Tensor],
        bits_per_weight: float,
        others: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """weights: name of a linear -> what the peer computes with, [out, in]. others: parameters
        that it changed besides, by name."""
        elapsed = time.perf_counter() - self.started
        model = self.load()
        expected = dict(linears(model))
        if weights.keys() != expected.keys():
            raise SystemExit(f"linears differ: {sorted(weights.keys() ^ expected.keys())[:4]}")
        for parameter in model.parameters():
            parameter.data = parameter.data.float()  # nothing is rounded a second time
        for name, weight in weights.items():
            expected[name].weight.data = weight.detach().float().contiguous()
        for name, value in (others or {}).items():
            model.get_parameter(name).data = value.detach().float().contiguous()
        model.config.dtype = torch.float32
        model.save_pretrained(self.dense)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            if (self.model / file).exists():
                shutil.copy(self.model / file, self.dense / file)
        print(json.dumps({"bits_per_weight": bits_per_weight, "elapsed_s": elapsed}))


def request(description: str) -> Request:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", type=Path)
    parser.add_argument("dense", type=Path)
    parser.add_argument("--bits", type=float, required=True)
    parser.add_argument("--group", type=int, help="weights that share a scale; all of a row")
    parser.add_argument("--calibrate", type=Path, required=True, help="JSON, lists of token ids")
    args = parser.parse_args()
    torch.manual_seed(0)
    tokens = json.loads(args.calibrate.read_text())
    bits = int(args.bits) if args.bits.is_integer() else args.bits
    return Request(args.model, args.dense, bits, args.group, tokens)


def require_rounded(asked: Request, linear: nn.Linear, name: str) -> None:
    """Some tools leave layers of odd widths in 16 bits, which would flatter them here."""
    groups = linear.weight.detach().view(-1, asked.group_of(linear))
    distinct = max(len(group.unique()) for group in groups)
    if distinct > 2**asked.bits:
        raise SystemExit(f"{name} {list(linear.weight.shape)} was left unquantized")


def linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Those of the decoder blocks, which is what all tools quantize."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in f".{name}"
    ]


def mean_bits(model: nn.Module, bits_of) -> float:
    """Over all weights of the linears; bits_of: linear -> bits a weight, everything stored."""
    found = [(linear.weight.numel(), bits_of(linear)) for _, linear in linears(model)]
    return sum(count * bits for count, bits in found) / sum(count for count, _ in found)
