"""What vLLM computes from our files is what we compute from them.

`make test-vllm` runs this; it needs .venv-vllm and minutes. Both sides get the same token ids, and
what is compared is the log-probability of each prompt token.

Two correct programs differ, because bf16 rounds differently in each order of summation. How much is
measured, not guessed: the unquantized model is served too, and `floor` is its difference from ours.

- W4A16, bf16 on both sides. Weights are dequantized before the sum, so rounding enters where it
  does for bf16 weights: mean difference at most 2 floor. Two, because floor is itself a mean over a
  few hundred correlated tokens, and quantized weights draw new rounding errors.
- W8A8, fp32 on both sides (vLLM's int8 product is exact, so fp32 makes all of it nearly so). An
  activation about halfway between two codes can still fall to either side, and later tokens see it;
  but a token with no such flip before it must agree as the unquantized model does, and a wrong
  scale or code would move all tokens. So the *lower quartile* of the differences, over short
  prompts, is held to 4 floor, floor being the largest fp32 difference without quantization.
- W8A8 in bf16, as one would serve it. There, nearly every activation may flip, which at worst makes
  the two sides independent roundings of the same activations: sqrt(2) times the effect of one, plus
  floor. This only says that the precision people serve in is not broken; it is the fp32 test that
  tells a wrong answer from a right one.

The first two must also be far below the effect of the quantization itself (a fifth), or
unquantized weights would pass.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import pennyweight
from pennyweight.model.load import load_model, load_tokenizer

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[2]
SERVER = ROOT / ".venv-vllm" / "bin" / "python"
MODEL = Path(pennyweight.__file__).parent / "pylm"
PROMPTS, PROMPT_TOKENS = 24, 10
SCHEMES = ("W4A16_g128", "W8A8")


@dataclass(frozen=True)
class Measured:
    """Log-probabilities of all prompt tokens, [tokens], by (scheme, dtype), from both sides."""

    ours: dict[tuple[str, str], torch.Tensor]
    theirs: dict[tuple[str, str], torch.Tensor]

    def difference(self, scheme: str, dtype: str) -> torch.Tensor:
        return (self.ours[scheme, dtype] - self.theirs[scheme, dtype]).abs()

    def effect(self, scheme: str, dtype: str) -> torch.Tensor:
        """How far quantization itself moves each token, by our own account."""
        return (self.ours[scheme, dtype] - self.ours["BF16", dtype]).abs()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    if not SERVER.exists():
        pytest.fail("no .venv-vllm; run `make test-vllm`, which builds it")
    folder = tmp_path_factory.mktemp("serving")
    paths = {"BF16": MODEL} | {scheme: quantize(folder / scheme, scheme) for scheme in SCHEMES}
    prompts = make_prompts()
    # vLLM has no fp32 kernel for 4-bit weights on a CPU.
    runs = [
        ("BF16", "bfloat16"),
        ("W4A16_g128", "bfloat16"),
        ("W8A8", "bfloat16"),
        ("BF16", "float32"),
        ("W8A8", "float32"),
    ]
    theirs = ask_vllm(folder, {run: paths[run[0]] for run in runs}, prompts)
    ours = {
        (scheme, dtype): prompt_logprobs(paths[scheme], getattr(torch, dtype), prompts)
        for scheme, dtype in runs
    }
    return Measured(ours, theirs)


def quantize(out: Path, scheme: str) -> Path:
    command = [
        sys.executable,
        "-m",
        "pennyweight",
        "quantize",
        str(MODEL),
        "-o",
        str(out),
        "--scheme",
        scheme,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def make_prompts() -> list[list[int]]:
    """Runs of tokens from this file: Python, which the bundled model knows, and no download."""
    ids = load_tokenizer(MODEL)(Path(__file__).read_text()[:1000])["input_ids"]
    return [
        ids[start : start + PROMPT_TOKENS]
        for start in range(0, PROMPTS * PROMPT_TOKENS, PROMPT_TOKENS)
    ]


def ask_vllm(folder: Path, paths: dict[tuple[str, str], Path], prompts: list[list[int]]) -> dict:
    job, out = folder / "job.json", folder / "out.json"
    models = [
        {"name": "-".join(run), "path": str(path), "dtype": run[1]} for run, path in paths.items()
    ]
    job.write_text(json.dumps({"models": models, "prompts": prompts}))
    subprocess.run([SERVER, ROOT / "tests" / "vllm" / "serve.py", job, out])
    results = json.loads(out.read_text())
    errors = {name: result["error"] for name, result in results.items() if "error" in result}
    assert not errors, "\n".join(f"vLLM refused {name}:\n{error}" for name, error in errors.items())
    return {
        run: torch.tensor(
            [value for prompt in results["-".join(run)]["prompt_logprobs"] for value in prompt[1:]]
        )
        for run in paths
    }


@torch.no_grad()
def prompt_logprobs(path: Path, dtype: torch.dtype, prompts: list[list[int]]) -> torch.Tensor:
    model, ids = load_model(path, dtype), torch.tensor(prompts)
    logprobs = model(ids).logits[:, :-1].float().log_softmax(-1)
    return logprobs.gather(2, ids[:, 1:, None]).flatten()


def report(name: str, difference: float, bound: float, effect: float) -> None:
    """Shown by `pytest -s`, and beside a failure."""
    sys.stdout.write(
        f"\n{name}: difference {difference:.2e}, bound {bound:.2e}, "
        f"effect of the quantization {effect:.2e}\n"
    )


def assert_weights_serve(measured: Measured, name: str) -> None:
    """The bound of dequantized weights, bf16 on both sides."""
    difference = measured.difference(name, "bfloat16").mean().item()
    bound = 2 * measured.difference("BF16", "bfloat16").mean().item()
    effect = measured.effect(name, "bfloat16").mean().item()
    report(f"{name} bf16", difference, bound, effect)
    assert difference <= bound
    assert difference < effect / 5


def assert_inputs_serve(measured: Measured, name: str) -> None:
    """The bound of rounded inputs, bf16 on both sides."""
    difference = measured.difference(name, "bfloat16").mean().item()
    floor = measured.difference("BF16", "bfloat16").mean().item()
    effect = measured.effect(name, "bfloat16").mean().item()
    report(f"{name} bf16", difference, 2**0.5 * effect + floor, effect)
    assert difference <= 2**0.5 * effect + floor


def test_w4a16_serves_as_we_compute_it(measured: Measured) -> None:
    assert_weights_serve(measured, "W4A16_g128")


def test_w8a8_serves_as_we_compute_it(measured: Measured) -> None:
    difference = measured.difference("W8A8", "float32").quantile(0.25).item()
    bound = 4 * measured.difference("BF16", "float32").max().item()
    effect = measured.effect("W8A8", "float32").quantile(0.25).item()
    report("W8A8 fp32, lower quartile", difference, bound, effect)
    assert difference <= bound
    assert bound < effect / 5


def test_w8a8_serves_in_bf16(measured: Measured) -> None:
    assert_inputs_serve(measured, "W8A8")
