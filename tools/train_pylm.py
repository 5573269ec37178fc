"""Rebuild `pylm`, the bundled model, or a member of its family, from Python's standard library.

    python tools/train_pylm.py --size 1m --seed 0 -o DIR

A Llama-style decoder learns the training text of `pennyweight.model.stdlib`: matrices by Muon,
everything else by AdamW, with a learning rate that is constant and then falls linearly to zero.
Sequences grow (256, 512, 1024 tokens): short ones are cheaper, and early training does not need
more. Unit tests are left out; they are twice the text, but another kind of it.

The schedule counts steps, never time, and one thread is the default, so the same command on the
same Python gives the same bytes. Masters are float32, the saved weights bfloat16, and what
training.json reports is measured on the saved files.

A run that was stopped continues from DIR/checkpoint.pt, also with another --steps, as long as the
learning rate had not begun to fall: until then a longer run and a shorter one are the same.
"""

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pennyweight.model.stdlib import stdlib_documents

BOS, EOS = "<|bos|>", "<|eos|>"
VOCAB_SIZE = 1024
MAX_TOKENS = 1024  # the longest sequence that is trained, and the window of the evaluation
STEP_TOKENS = 4096
WARMUP_STEPS = 50
DECAY_FRACTION = 0.4  # of the steps, at the end
STAGES = ((0.7, 256), (0.9, 512), (1.0, 1024))  # (up to this fraction of the steps, length)
BLOCK_STEPS = 100  # sequence lengths change, and checkpoints are written, between blocks
MUON_RATE, ADAM_RATE = 0.02, 0.006  # at their peak; 0.008 for Muon was slower, 0.04 no faster


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What differs between sizes. Widths are multiples of 128 so that groups of 128 divide them."""

    hidden: int
    layers: int
    intermediate: int
    heads: int  # hidden / heads = 32, the smallest head that vLLM's CPU attention takes


SIZES = {
    "0.3m": Shape(hidden=128, layers=2, intermediate=128, heads=4),
    "0.5m": Shape(hidden=128, layers=2, intermediate=384, heads=4),
    "1m": Shape(hidden=128, layers=5, intermediate=384, heads=4),
    "2m": Shape(hidden=256, layers=3, intermediate=512, heads=8),
    "3m": Shape(hidden=256, layers=5, intermediate=512, heads=8),
}


def main() -> None:
    """Train, save, evaluate what was saved, and write the record beside it."""
    options = parse_options()
    prepare_process(options.threads)
    torch.manual_seed(options.seed)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)

    library, extra = stdlib_documents("train"), stdlib_documents("extra")
    tokenizer = train_tokenizer([text for _, text in library])
    save_tokenizer(tokenizer, folder)
    ids = encode(tokenizer, library + extra)

    model = LlamaForCausalLM(model_config(SIZES[options.size]))
    train_s = train(model, ids, options, folder / "checkpoint.pt")
    save_model(model, folder)

    record = {
        "command": f"python tools/train_pylm.py --size {options.size} --seed {options.seed} "
        f"--steps {options.steps} -o DIR",
        "size": options.size,
        "seed": options.seed,
        "shape": asdict(SIZES[options.size]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "text": {
            "python": platform.python_version(),
            "modules": len(ids),
            "bytes": sum(len(text.encode()) for _, text in library + extra),
            "tokens": sum(len(document) for document in ids),
        },
        "steps": options.steps,
        "tokens_seen": options.steps * STEP_TOKENS,
        "threads": options.threads,
        "train_s": round(train_s),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, tokenizers)},
        "heldout": evaluate(folder),
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    (folder / "checkpoint.pt").unlink()
    log(f"held out: {record['heldout']['bits_per_byte']:.4f} bits per byte")


def parse_options() -> argparse.Namespace:
    """The command line."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--size", choices=SIZES, default="1m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200, help=f"of {STEP_TOKENS} tokens")
    parser.add_argument("--threads", type=int, default=1, help="more threads, other rounding")
    parser.add_argument("--no-compile", action="store_true", help="slower; no C++ compiler needed")
    parser.add_argument("-o", "--output", required=True, metavar="DIR")
    return parser.parse_args()


def prepare_process(threads: int) -> None:
    """Set the threads and make the attention of this script known to transformers."""
    torch.set_num_threads(threads)
    ALL_ATTENTION_FUNCTIONS.register("causal", causal_attention)


# Tokenizer


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE in which line breaks with their indentation, and digits, stand alone."""
    pieces = Regex(r"\n+ *| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+| +|\s")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the two files that AutoTokenizer reads."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "model_max_length": MAX_TOKENS,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def encode(tokenizer: Tokenizer, documents: list[tuple[str, str]]) -> list[Tensor]:
    """The ids of each document: BOS, text, EOS."""
    eos = tokenizer.token_to_id(EOS)
    encodings = tokenizer.encode_batch([text for _, text in documents])
    return [torch.tensor([*encoding.ids, eos]) for encoding in encodings]


# Model


def model_config(shape: Shape) -> LlamaConfig:
    """The configuration of a size, as transformers knows it."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=2,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        attn_implementation="causal",
    )


def causal_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object
) -> tuple[Tensor, None]:
    """Attention that never builds a mask: under torch.compile transformers would."""
    repeats = module.num_key_value_groups
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    output = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return output.transpose(1, 2).contiguous(), None


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write bfloat16 weights and configuration; the model passed in stays in float32."""
    saved = LlamaForCausalLM(LlamaConfig(**model.config.to_dict())).to(torch.bfloat16)
    saved.load_state_dict(model.state_dict())
    saved.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it is package data, not a private file


# Training


def train(
    model: LlamaForCausalLM, documents: list[Tensor], options: argparse.Namespace, checkpoint: Path
) -> float:
    """Run the steps that are missing; changes the model in place, returns the seconds it took."""
    muon, adam = make_optimizers(model)
    parts = {"model": model, "muon": muon, "adam": adam}
    progress = load_checkpoint(checkpoint, parts, options)
    started = time.perf_counter() - progress["elapsed_s"]
    loss_of = make_loss(model, compiled=not options.no_compile)
    for step, (inputs, targets) in enumerate(batches(documents, options), start=1):
        if step <= progress["done"]:
            continue
        loss = loss_of(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak_rate in ((muon, MUON_RATE), (adam, ADAM_RATE)):
            optimizer.param_groups[0]["lr"] = peak_rate * rate_scale(step, options.steps)
            optimizer.step()
            optimizer.zero_grad()
        if step % BLOCK_STEPS == 0:
            elapsed_s = time.perf_counter() - started
            save_checkpoint(checkpoint, parts, options, done=step, elapsed_s=elapsed_s)
            log(f"step {step} of {options.steps}: loss {loss.item():.4f}, {elapsed_s:.0f} s")
    return time.perf_counter() - started


def make_loss(model: LlamaForCausalLM, *, compiled: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The function from inputs and targets to mean nats per token."""
    head_loss = sequence_loss
    if compiled:
        # Layers of one shape share the compiled code, so this compiles once per sequence length.
        for layer in model.model.layers:
            layer.compile(dynamic=False)
        head_loss = torch.compile(sequence_loss, dynamic=False)

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
            return head_loss(hidden, model.lm_head.weight, targets)

    return loss_of


def sequence_loss(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Mean nats per token."""
    logits = F.linear(hidden, head).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def make_optimizers(model: nn.Module) -> tuple[torch.optim.Muon, torch.optim.AdamW]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01, momentum=0.95)
    return muon, torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0)


def rate_scale(step: int, steps: int) -> float:
    """Warm up, stay, fall linearly towards zero; steps count from one."""
    warmup = min(1.0, step / WARMUP_STEPS)
    return warmup * min(1.0, (steps - step + 1) / (DECAY_FRACTION * steps))


def batches(
    documents: list[Tensor], options: argparse.Namespace
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets [rows, length] of every step.

    Each row of a block walks through its own part of the stream, so the rows of a batch come from
    different modules and a row continues where it stopped.
    """
    most_rows = STEP_TOKENS // STAGES[0][1]
    source = stream(documents, BLOCK_STEPS * STEP_TOKENS + most_rows, options.seed)
    for first in range(0, options.steps, BLOCK_STEPS):
        length = next(length for end, length in STAGES if first < end * options.steps)
        rows = STEP_TOKENS // length
        lanes = next(source)[: BLOCK_STEPS * STEP_TOKENS + rows].view(rows, -1)
        for start in range(0, min(BLOCK_STEPS, options.steps - first) * length, length):
            yield lanes[:, start : start + length], lanes[:, start + 1 : start + length + 1]


def stream(documents: list[Tensor], tokens: int, seed: int) -> Iterator[Tensor]:
    """Blocks of so many tokens: the documents one after the other, shuffled for every epoch."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.int64)
    while True:
        order = torch.randperm(len(documents), generator=generator).tolist()
        left = torch.cat([left, *(documents[index] for index in order)])
        while len(left) >= tokens:
            yield left[:tokens]
            left = left[tokens:]


# Checkpoints


def save_checkpoint(path: Path, parts: dict[str, Any], options: argparse.Namespace, **progress):
    """Write all that a later process needs to go on, under a temporary name first."""
    state = {name: part.state_dict() for name, part in parts.items()}
    temporary = path.with_suffix(".part")
    torch.save({"options": vars(options), "progress": progress, "state": state}, temporary)
    temporary.replace(path)


def load_checkpoint(path: Path, parts: dict[str, Any], options: argparse.Namespace) -> dict:
    """Restore the state at `path`; the steps and seconds already done, zero if there is none."""
    if not path.is_file():
        return {"done": 0, "elapsed_s": 0.0}
    saved = torch.load(path)
    progress, before = saved["progress"], saved["options"]
    if (before["size"], before["seed"]) != (options.size, options.seed):
        raise SystemExit(f"{path}: is of another size or seed; use another directory")
    constant_steps = (1 - DECAY_FRACTION) * min(options.steps, before["steps"])
    if before["steps"] != options.steps and progress["done"] > constant_steps:
        raise SystemExit(f"{path}: the rate had begun to fall; use --steps {before['steps']}")
    for name, part in parts.items():
        part.load_state_dict(saved["state"][name])
    return progress


# Evaluation


@torch.inference_mode()
def evaluate(folder: Path) -> dict:
    """Loss of the saved files on the held-out modules, in all and module by module.

    A module is read in windows of MAX_TOKENS that do not overlap; each predicts the first token of
    the next, so every token but BOS is predicted once. EOS is not counted.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    modules = {}
    for name, text in stdlib_documents("heldout"):
        ids = torch.tensor(tokenizer(text, verbose=False).input_ids)
        nats = 0.0
        for start in range(0, len(ids) - 1, MAX_TOKENS):
            window = ids[start : start + MAX_TOKENS + 1]
            logits = model(window[None, :-1]).logits[0]
            nats += F.cross_entropy(logits, window[1:], reduction="sum").item()
        sizes = {"bytes": len(text.encode()), "tokens": len(ids) - 1}
        modules[name] = sizes | {"nats": round(nats, 2)}
    keys = ("bytes", "tokens", "nats")
    total = {key: sum(module[key] for module in modules.values()) for key in keys}
    return {
        "window": MAX_TOKENS,
        "bytes": total["bytes"],
        "tokens": total["tokens"],
        "bits_per_byte": round(total["nats"] / math.log(2) / total["bytes"], 4),
        "nats_per_token": round(total["nats"] / total["tokens"], 4),
        "modules": modules,
    }


def log(message: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {message}\n")


if __name__ == "__main__":
    main()
