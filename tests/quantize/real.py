"""Weights of the bundled model and the inputs that reach them."""

from functools import cache
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import pennyweight
from pennyweight.core import Stats

PYLM = Path(pennyweight.__file__).parent / "pylm"
LINEARS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")
TOKENS = 1024


@cache
def real_layers() -> dict[str, tuple[torch.Tensor, Stats]]:
    """Name -> (weight, stats of its inputs on text and of its gradient) of two linears of pylm."""
    transformers.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(PYLM, dtype=torch.float32).eval()
    text = Path(transformers.__file__).with_name("modeling_utils.py").read_text(encoding="utf-8")
    ids = torch.tensor(AutoTokenizer.from_pretrained(PYLM)(text[: 8 * TOKENS])["input_ids"])
    length = min(512, model.config.max_position_embeddings)
    ids = ids[: min(TOKENS, len(ids)) // length * length].view(-1, length)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in LINEARS}
    squares = {name: torch.zeros(()) for name in LINEARS}
    for name in LINEARS:
        keep = lambda _, inputs, __, name=name: seen[name].append(inputs[0].detach().flatten(0, 1))
        model.get_submodule(name).register_forward_hook(keep)
    for sample in ids:
        loss = model(input_ids=sample[None], labels=sample[None]).loss
        weights = [model.get_submodule(name).weight for name in LINEARS]
        for name, grad in zip(LINEARS, torch.autograd.grad(loss, weights), strict=True):
            squares[name] = squares[name] + grad.square()
    return {
        name: (
            model.get_submodule(name).weight.detach().clone(),
            _stats(torch.cat(seen[name]), squares[name], len(ids)),
        )
        for name in LINEARS
    }


def _stats(x: torch.Tensor, squares: torch.Tensor, samples: int) -> Stats:
    return Stats(
        tokens=len(x), gram=x.T @ x, abs_sum=x.abs().sum(0), square_sum=x.square().sum(0),
        samples=samples, squared_gradient=squares,
    )  # fmt: skip
