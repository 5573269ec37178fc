"""The bundled model loads, keeps its shape rules, and still does what its record says."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import pennyweight
from pennyweight.model.stdlib import stdlib_documents

PYLM = Path(pennyweight.__file__).parent / "pylm"
CHECKED = ("fnmatch", "graphlib", "textwrap")  # small, and rarely changed between Pythons


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(PYLM)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(PYLM)


def test_files_are_small():
    assert (PYLM / "model.safetensors").stat().st_size <= 4_000_000


def test_shapes_suit_groups_of_128_and_cpu_attention(model):
    config = model.config
    assert model.dtype == torch.bfloat16
    assert config.tie_word_embeddings
    assert config.hidden_size % 128 == 0
    assert config.intermediate_size % 128 == 0
    assert config.head_dim >= 32
    assert config.max_position_embeddings >= 1024


@pytest.mark.parametrize(
    "text",
    ["", " ", "def f(x):\n    return x + 12.5\n", "\t\r\n\n  \n\x00\x7f", "naïve 漢字 🐍 e\u0301"],
)
def test_tokenizer_returns_the_text_behind_bos(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text


def test_recorded_loss_is_reproduced(model, tokenizer):
    record = json.loads((PYLM / "training.json").read_text())["heldout"]
    texts = dict(stdlib_documents("heldout"))
    names = [n for n in CHECKED if len(texts[n].encode()) == record["modules"][n]["bytes"]]
    if not names:
        pytest.skip("this Python's modules are not those of the record")
    measured = sum(nats_of(model, tokenizer, texts[name], record["window"]) for name in names)
    recorded = sum(record["modules"][name]["nats"] for name in names)
    # The record was made in float32; bfloat16 activations move the loss by less than this.
    assert measured == pytest.approx(recorded, rel=0.02)


def test_recorded_total_is_the_sum_of_the_modules():
    record = json.loads((PYLM / "training.json").read_text())["heldout"]
    nats = sum(module["nats"] for module in record["modules"].values())
    assert record["bits_per_byte"] == pytest.approx(nats / math.log(2) / record["bytes"], abs=1e-3)


@torch.inference_mode()
def nats_of(model, tokenizer, text: str, window: int) -> float:
    ids = torch.tensor(tokenizer(text, verbose=False).input_ids)
    nats = 0.0
    for start in range(0, len(ids) - 1, window):
        part = ids[start : start + window + 1]
        logits = model(part[None, :-1]).logits[0].float()
        nats += F.cross_entropy(logits, part[1:], reduction="sum").item()
    return nats
