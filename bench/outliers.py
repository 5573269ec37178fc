"""Outliers put into a model: which 8-bit methods stay where they were on the clean one.

    python bench/outliers.py MODEL --calibrate TEXT --evaluate TEXT [--split-at REGEX]
        [--alpha 1 10 100] [--channels 4]

The model with injected outliers computes the same logits (pennyweight.pipeline.inject), so every
row's perplexity at a larger alpha should be what it is at alpha 1; the last column says by how many
percent it is above the same method's on the clean model. `SQNR` is the least of all inputs, in dB,
as `pennyweight profile` gives it: one int8 scale for each sample, and one for each token.
"""

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pennyweight.api import Settings, evaluate, quantize
from pennyweight.pipeline.inject import inject_outliers
from pennyweight.pipeline.profile import Sampling, profile
from pennyweight.pipeline.recipe import parse_recipe


@dataclass(frozen=True)
class Method:
    label: str
    scheme: str
    transform: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def methods(share: float) -> tuple[Method, ...]:
    """share: of the channels that are loud, which clip_smooth has to be told."""
    told = {"share": share}
    return (
        Method("naive, all per tensor, static", "W8A8_tensor_static"),
        Method("naive, inputs per tensor, static", "W8A8_static"),
        Method("per token", "W8A8"),
        Method("SmoothQuant, static", "W8A8_static", "smoothquant"),
        Method("SmoothQuant, per token", "W8A8", "smoothquant"),
        Method("clip_smooth, static", "W8A8_static", "clip_smooth", told),
        Method("clip_smooth, per token", "W8A8", "clip_smooth", told),
        Method("clip_smooth 0.5 %, static", "W8A8_static", "clip_smooth"),
        Method("log_equalize, static", "W8A8_static", "log_equalize"),
    )


@dataclass(frozen=True, kw_only=True)
class Protocol:
    model: str
    calibrate: str
    evaluate: str
    split_at: str | None = None
    samples: int = 32
    tokens: int = 256
    max_tokens: int = 20_000

    def perplexity(self, model: str | Path) -> float:
        settings = Settings(context=self.tokens, max_tokens=self.max_tokens)
        found = evaluate(model, data=[self.evaluate], split_at=self.split_at, settings=settings)
        return found.perplexity.value

    def quantized(self, model: Path, method: Method) -> float:
        """The perplexity of the model after the method."""
        transforms = [{"name": method.transform, "options": dict(method.options)}]
        recipe = parse_recipe({
            "model": str(model), "rule": [{"scheme": method.scheme, "quantizer": "rtn"}],
            "transform": transforms if method.transform else [],
            "calibrate": {"data": [self.calibrate], "samples": self.samples,
                          "tokens": self.tokens, "split_at": self.split_at},
        })  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            return self.perplexity(quantize(recipe, Path(folder) / "out").path)

    def least_sqnr(self, model: Path) -> tuple[float, float]:
        sampling = Sampling(samples=8, tokens=self.tokens, split_at=self.split_at)
        found = profile(str(model), [self.calibrate], sampling)
        seen = [place.portraits[self.calibrate] for place in found.inputs]
        return min(p.whole_tensor_sqnr_db for p in seen), min(p.token_sqnr_db for p in seen)


def measure(
    protocol: Protocol, alphas: list[float], channels: int, share: float
) -> dict[float, dict[str, float]]:
    """Alpha -> method -> perplexity; the model itself is `unquantized`."""
    table: dict[float, dict[str, float]] = {}
    for alpha in alphas:
        with tempfile.TemporaryDirectory() as folder:
            loud = inject_outliers(
                protocol.model, Path(folder) / "loud", alpha=alpha, channels=channels
            ).path
            tensor, token = protocol.least_sqnr(loud)
            table[alpha] = {
                "SQNR per tensor": tensor, "SQNR per token": token,
                "unquantized": protocol.perplexity(loud),
            }  # fmt: skip
            for method in methods(share):
                table[alpha][method.label] = protocol.quantized(loud, method)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibrate", required=True)
    parser.add_argument("--evaluate", required=True)
    parser.add_argument("--split-at")
    parser.add_argument("--alpha", type=float, nargs="+", default=[1, 10, 100])
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.0625, help="of clip_smooth")
    args = parser.parse_args()
    protocol = Protocol(
        model=args.model, calibrate=args.calibrate, evaluate=args.evaluate, split_at=args.split_at
    )
    alphas = sorted({1.0, *args.alpha})
    table = measure(protocol, alphas, args.channels, args.share)
    print("|", " | ".join(["", *(f"alpha {a:g}" for a in alphas), "change %"]), "|")
    print("|", " | ".join(["---"] * (len(alphas) + 2)), "|")
    for row in table[1.0]:
        values = [table[alpha][row] for alpha in alphas]
        change = f"{100 * (values[-1] / values[0] - 1):+.2f}" if "SQNR" not in row else ""
        print("|", " | ".join([row, *(f"{v:.4g}" for v in values), change]), "|")


if __name__ == "__main__":
    main()
