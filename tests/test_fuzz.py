"""Thousands of broken files and recipes: each is read, or refused with a PennyweightError.

Seeded, so that a failure repeats; the case's number is in the note under the traceback.
"""

import copy
import json
import random
import re
import shutil
import signal
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pennyweight.core import PennyweightError
from pennyweight.model.checkpoint import INDEX, SINGLE, Checkpoint
from pennyweight.model.compressed import CompressedCheckpoint
from pennyweight.model.skeleton import Skeleton
from pennyweight.pipeline.plan import load_plan
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Recipe, Rule, load_recipe, override, parse_recipe
from pennyweight.pipeline.survey import survey
from tests.conftest import save_tiny_model

CASE_SECONDS = 5  # of this process, so that a busy machine is no hang; a case takes milliseconds
ODD_VALUES = (
    None, True, False, 0, 1, -1, 3, 7.5, 2**31, 2**63, 2**64 + 1, 10**30, -(2**63), 1e400, -0.0,
    float("nan"), "", "x", "64", "\x00", "\ud800", "é" * 3, "a" * 5000, "../x", ".", "..", [], [1],
    [[]], ["a", None], [-1, 2], {}, {"a": 1}, {"name": "gptq"}, {"rope_type": "yarn"},
)  # fmt: skip


@contextmanager
def limited(case: int):
    """Raise if the case hangs, and note its number on whatever it raises."""

    def stop(*_):
        raise TimeoutError(f"case {case} took over {CASE_SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
    try:
        yield
    except Exception as error:
        error.add_note(f"case {case}")
        raise
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def outcomes(count: int, attempt) -> Counter[str]:
    """How often each outcome came; attempt(rng) may raise PennyweightError and nothing else."""
    found: Counter[str] = Counter()
    for case in range(count):
        with limited(case):
            try:
                attempt(random.Random(case))
            except PennyweightError as error:
                assert str(error).strip(), "an error without a message"
                found[type(error).__name__] += 1
            else:
                found["accepted"] += 1
    return found


def odd_change(rng: random.Random, data):
    """A copy of nested dicts and lists with one place changed, removed, moved or added."""
    data = copy.deepcopy(data)
    places = list(_places(data))
    holder, key = rng.choice(places)
    action = rng.randrange(5)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[str(key) + rng.choice(("s", "", "_", "\n", " "))] = holder.pop(key)
    elif action == 2:
        holder[key] = copy.deepcopy(rng.choice([h[k] for h, k in places]))
    else:
        holder[key] = rng.choice(ODD_VALUES)
    return data


def _places(data):
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield data, key
        if isinstance(value, dict | list):
            yield from _places(value)


def flip_bytes(rng: random.Random, content: bytes, stop: int) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(stop)] = rng.randrange(256)
    return bytes(changed)


TENSORS = {
    "model.a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "model.b.weight": torch.zeros(2, 2, dtype=torch.bfloat16),
    "model.c": torch.ones(5, dtype=torch.int64),
}
BAD_ENTRIES = (
    {"dtype": "F4"}, {"dtype": "F32 "}, {"dtype": "F8_E8M0"}, {"dtype": "C64"}, {"dtype": 3},
    {"dtype": "I8"}, {"dtype": "BOOL"}, {"shape": [-1, 4]}, {"shape": [2**63, 2]},
    {"shape": [2**32, 2**32]}, {"shape": [2**64]}, {"shape": [3.0, 4.0]}, {"shape": [12]},
    {"shape": []}, {"shape": [0]}, {"shape": None}, {"shape": [[3, 4]]}, {"data_offsets": [0, 4]},
    {"data_offsets": [48, 0]}, {"data_offsets": [-48, 0]}, {"data_offsets": [0, 2**64]},
    {"data_offsets": [0, 2**63]}, {"data_offsets": [0]}, {"data_offsets": [16, 64]}, {"extra": 1},
)  # fmt: skip


def broken_safetensors(rng: random.Random, good: bytes) -> bytes:
    length = int.from_bytes(good[:8], "little")
    text, data = good[8 : 8 + length], good[8 + length :]
    kind = rng.randrange(8)
    if kind == 0:
        return flip_bytes(rng, good, len(good))
    if kind == 1:
        return good[: rng.randrange(len(good))]
    if kind == 2:
        wrong = rng.choice((0, 1, length - 1, length + 1, 2**31, 2**40, 2**63, 2**64 - 1))
        return wrong.to_bytes(8, "little") + good[8:]
    if kind == 3:
        text = flip_bytes(rng, text, length)
    elif kind == 4:
        header = json.loads(text)
        header[rng.choice(list(TENSORS))].update(rng.choice(BAD_ENTRIES))
        text = json.dumps(header).encode()
    elif kind == 5:
        text = json.dumps(odd_change(rng, json.loads(text))).encode()
    elif kind == 6:
        extra = rng.choice((
            b'"model.c":{"dtype":"I64","shape":[5],"data_offsets":[0,40]}', b'"\xff\xfe":1',
            b'"__metadata__":{"a":1}', b'"__metadata__":[]', b'"x":' + b"[" * 2000 + b"]" * 2000,
            b'"model.c":{"dtype":"I64","shape":[5],"data_offsets":[56,96]}', b'"":{}', b'"x":NaN',
        ))  # fmt: skip
        text = b"{" + extra + b"," + text[1:]
    else:
        data = data[: rng.randrange(len(data))] if rng.random() < 0.5 else data + b"\0" * 7
    return len(text).to_bytes(8, "little") + text + data


def test_safetensors_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / SINGLE
    save_file(TENSORS, file, {"format": "pt"})
    good = file.read_bytes()

    def attempt(rng: random.Random) -> None:
        file.write_bytes(broken_safetensors(rng, good))
        checkpoint = Checkpoint.open(tmp_path)
        for name in checkpoint.tensors:
            checkpoint.read(name)
            checkpoint.read_finite(name)
        assert checkpoint.fingerprint

    found = outcomes(1500, attempt)
    assert found["CheckpointError"] > 500
    assert found["accepted"] > 50


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The smallest Llama that has everything."""
    return save_tiny_model(
        tmp_path_factory.mktemp("fuzz") / "model", num_hidden_layers=1, hidden_size=32,
        intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, vocab_size=16,
    )  # fmt: skip


@pytest.fixture
def scratch(model, tmp_path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


def test_index_and_config_files(scratch):
    names = list(Checkpoint.open(scratch).tensors)
    index = {"metadata": {"total_size": 9}, "weight_map": dict.fromkeys(names, "all.safetensors")}
    (scratch / SINGLE).rename(scratch / "all.safetensors")
    good = {INDEX: json.dumps(index), "config.json": (scratch / "config.json").read_text()}

    def attempt(rng: random.Random) -> None:
        for name, text in good.items():
            (scratch / name).write_text(text)
        name = rng.choice(list(good))
        (scratch / name).write_bytes(_broken_json(rng, good[name]))
        assert Checkpoint.open(scratch).fingerprint

    found = outcomes(600, attempt)
    assert found["CheckpointError"] > 150
    assert found["accepted"] > 100


def _broken_json(rng: random.Random, text: str) -> bytes:
    kind = rng.randrange(6)
    if kind == 0:
        return flip_bytes(rng, text.encode(), len(text))
    if kind == 1:
        return text.encode()[: rng.randrange(len(text))]
    if kind == 2:
        return rng.choice((b"", b"[]", b"null", b"1", b"[" * 5000, b'{"a":' * 3000, b"\xff\xfe{"))
    return json.dumps(odd_change(rng, json.loads(text))).encode()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
def test_values_of_config_json(scratch):
    config = json.loads((scratch / "config.json").read_text())

    def attempt(rng: random.Random) -> None:
        (scratch / "config.json").write_text(json.dumps(odd_change(rng, config)))
        survey(Skeleton.build(Checkpoint.open(scratch)))

    found = outcomes(100, attempt)
    assert found["UnsupportedError"] > 10
    assert found["accepted"] > 20


def test_config_of_a_quantized_model(model, tmp_path):
    rule = Rule(scheme="W4A16_g32", quantizer="rtn")
    quantize(Recipe(model=str(model), rule=(rule,)), tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    config = json.loads(file.read_text())

    def attempt(rng: random.Random) -> None:
        changed = odd_change(rng, config["quantization_config"])
        file.write_text(json.dumps(config | {"quantization_config": changed}))
        checkpoint = CompressedCheckpoint.open(tmp_path / "out")
        for name in list(checkpoint.schemes)[:2]:
            checkpoint.read(f"{name}.weight")

    found = outcomes(200, attempt)
    assert found["accepted"] > 30


RECIPE = """
model = "some/model"
seed = 3
compute = "float32"
min_expert_tokens = 8
trust_remote_code = false

[calibrate]
data = ["stdlib", "a.txt"]
samples = 16
tokens = 128
split_at = "\\n\\n"

[[rule]]
match = "*.down_proj.weight"
scheme = "W8A16_g32_asym"
quantizer = { name = "mse_clip", smallest = 0.4 }

[[rule]]
match = "*"
scheme = "W4A16_g128"
quantizer = "gptq"
options = { damp = 0.05, act_order = true, range = "mse" }
"""
FRAGMENTS = (
    "[[", "]]", "=", '"', "'", "{", "}", "\n", "#", ".", "\x00", "inf", "nan", "-1", "1e999", "[]",
    "1979-05-27", "rule = 3\n", "[rule]\n", "true", "0x", "9" * 5000, "[" * 3000, "\\u0000",
    "\ufeff", "[calibrate]\n", "damp = nan\n", "_g", "W", "é",
)  # fmt: skip


def broken_toml(rng: random.Random) -> bytes:
    text = RECIPE
    if rng.random() < 0.5:  # gently: most of these are still TOML
        for old in rng.sample(re.findall(r"[\w.*/-]+", text), 2):
            text = text.replace(old, rng.choice((old[1:], old + "0", old.upper(), "1", "-" + old)))
        return text.encode()
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(text))
        stop = start + rng.choice((0, 0, 1, 3, 20))
        insert = rng.choice((*FRAGMENTS, *map(chr, range(32, 127))))
        text = text[:start] + insert + text[stop:]
    content = text.encode()
    return flip_bytes(rng, content, len(content)) if rng.random() < 0.1 else content


def test_recipe_files(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    load_recipe(file)

    def attempt(rng: random.Random) -> None:
        file.write_bytes(broken_toml(rng))
        assert isinstance(load_recipe(file), Recipe)

    found = outcomes(1000, attempt)
    assert found["RecipeError"] > 300
    assert found["accepted"] > 20


def test_recipe_dictionaries(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    good = override({}, ["rule.0.options.damp=0.5", "calibrate.samples=3", "seed=1"])
    good |= {"model": "m", "calibrate": {"data": ["stdlib"], "tokens": 9, "split_at": "a|b"}}
    good["rule"].append({"quantizer": {"name": "hqq", "p": 0.5}, "options": {"steps": 3}})
    parse_recipe(good)

    def attempt(rng: random.Random) -> None:
        assert isinstance(parse_recipe(odd_change(rng, good)), Recipe)

    found = outcomes(1000, attempt)
    assert found["RecipeError"] > 300
    assert found["accepted"] > 100


def test_overrides():
    paths = (
        "seed", "rule", "rule.0", "rule.0.options.damp", "rule.9", "rule.²", "rule.-1", "", ".",
        "calibrate.data", "calibrate", "calibrate.data.0", "a.b.c", "model.x",
    )  # fmt: skip

    def attempt(rng: random.Random) -> None:
        given = [
            rng.choice(paths) + rng.choice(("=", "", " = ")) + rng.choice((*FRAGMENTS, "1", '"a"'))
            for _ in range(rng.randint(1, 3))
        ]
        assert isinstance(parse_recipe(override({}, given)), Recipe)

    assert outcomes(300, attempt)["RecipeError"] > 100


def test_plan_files(model, tmp_path):
    rule = Rule(scheme="W4A16_g32", quantizer="rtn")
    quantize(Recipe(model=str(model), rule=(rule,)), tmp_path / "out")
    file, good = tmp_path / "plan.json", (tmp_path / "out" / "plan.json").read_text()

    def attempt(rng: random.Random) -> None:
        file.write_bytes(_broken_json(rng, good))
        plan = load_plan(file)
        for task in plan.tasks:
            plan.needs(task)

    found = outcomes(300, attempt)
    assert found["RecipeError"] > 120
    assert found["accepted"] > 20
