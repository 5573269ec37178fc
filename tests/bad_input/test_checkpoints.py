"""Model directories that are broken, incomplete or not what they say."""

import json
from dataclasses import replace

import pytest
import torch

from pennyweight.core import CheckpointError, UnsupportedError
from pennyweight.model.checkpoint import INDEX, SINGLE, Checkpoint
from pennyweight.pipeline.quantize import quantize
from tests.bad_input.helpers import (
    change_config,
    change_tensors,
    copy,
    recipe,
    refused,
    shards,
)

OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

open({ran!r}, "w").close()


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def model(tiny_llama, tmp_path):
    """A copy of the tiny Llama to damage."""
    return copy(tiny_llama, tmp_path / "model")


@pytest.fixture
def sharded(save_tiny):
    """The tiny Llama in several files and an index."""
    model = save_tiny(max_shard_size="100KB")
    assert len(shards(model)) > 2
    return model


def test_a_sharded_model_is_fine(sharded, tmp_path):
    assert quantize(recipe(sharded), tmp_path / "out").path.is_dir()


@pytest.mark.parametrize("keep", [0, 5, 60, 0.5, -1])
def test_a_truncated_shard(sharded, tmp_path, keep):
    file = shards(sharded)[1]
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    found = refused(recipe(sharded), tmp_path / "out", CheckpointError, file.name)
    assert "not a complete safetensors file" in found
    assert "download" in found


def test_a_file_that_shrinks_after_it_was_opened(model):
    checkpoint = Checkpoint.open(model)
    content = (model / SINGLE).read_bytes()
    (model / SINGLE).write_bytes(content[:-8])
    last = max(checkpoint.tensors.values(), key=lambda info: info.stop)
    with pytest.raises(CheckpointError, match=f"{last.name}: the file ends inside this tensor"):
        checkpoint.read(last.name)


def test_a_missing_shard(sharded, tmp_path):
    file = shards(sharded)[1]
    file.unlink()
    refused(recipe(sharded), tmp_path / "out", CheckpointError, INDEX, file.name, "missing")


def test_two_swapped_shards(sharded, tmp_path):
    first, second = shards(sharded)[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    refused(
        recipe(sharded), tmp_path / "out", CheckpointError, first.name, "are two shards swapped"
    )


def test_a_shard_with_a_tensor_that_the_index_does_not_know(sharded, tmp_path):
    file = shards(sharded)[0]
    change_tensors(sharded, lambda tensors: tensors.update(odd=torch.ones(1)), file.name)
    refused(recipe(sharded), tmp_path / "out", CheckpointError, file.name, "odd", "does not know")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a\x00b", "a" * 300, 3])
def test_an_index_that_names_no_file_of_the_directory(sharded, tmp_path, name):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][DOWN] = name
    (sharded / INDEX).write_text(json.dumps(index))
    refused(recipe(sharded), tmp_path / "out", CheckpointError, INDEX, DOWN, "is not a file name")


def test_shards_without_their_index(sharded, tmp_path):
    (sharded / INDEX).unlink()
    refused(recipe(sharded), tmp_path / "out", CheckpointError, INDEX, "model-00001-of-")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "a.pth"])
def test_pickles_are_refused_with_the_command_that_converts_them(model, tmp_path, name):
    (model / SINGLE).unlink()
    (model / name).write_bytes(b"never opened")
    found = refused(recipe(model), tmp_path / "out", UnsupportedError, name, "can run code")
    assert f"M.from_pretrained('{model}').save_pretrained('{model}-safe')" in found


def test_a_pickle_beside_safetensors_is_left_alone(model, tmp_path):
    (model / "training_args.bin").write_bytes(b"never opened")
    found = quantize(recipe(model), tmp_path / "out").proof["census"]["dropped_files"]
    assert list(found) == ["training_args.bin"]


def test_no_weights_and_no_config(model, tmp_path):
    (model / SINGLE).unlink()
    refused(recipe(model), tmp_path / "out", CheckpointError, SINGLE, "none")
    (model / "config.json").unlink()
    refused(recipe(model), tmp_path / "out", CheckpointError, "config.json", "missing")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (DOWN, torch.nan),
        (DOWN, -torch.inf),
        ("model.embed_tokens.weight", torch.inf),
        ("model.norm.weight", torch.nan),
        ("lm_head.weight", torch.nan),
    ],
)
def test_weights_that_are_not_finite(model, tmp_path, token_file, name, value):
    change_tensors(model, lambda tensors: tensors[name].view(-1)[7:9].fill_(value))
    found = refused(recipe(model, token_file), tmp_path / "out", CheckpointError, name, SINGLE)
    assert "2 of " in found
    assert "NaN or Inf" in found


def test_the_config_of_another_model(model, tmp_path):
    change_config(model, intermediate_size=128)
    found = refused(recipe(model), tmp_path / "out", CheckpointError, "[96, 64]", "[128, 64]")
    assert "is config.json of another model?" in found
    change_config(model, intermediate_size=96, num_hidden_layers=3)
    refused(recipe(model), tmp_path / "out", CheckpointError, "model.layers.2.", "another model?")
    change_config(model, num_hidden_layers=2, model_type="gpt2")
    refused(recipe(model), tmp_path / "out", CheckpointError, "another model?")


def test_sizes_that_no_memory_holds_fail_at_once(model, tmp_path):
    change_config(model, num_hidden_layers=10**9)
    refused(recipe(model), tmp_path / "out", CheckpointError, "num_hidden_layers = 1000000000")
    change_config(model, num_hidden_layers=2, head_dim=10**10)
    refused(recipe(model), tmp_path / "out", CheckpointError, "[40000000000, 64]", "q_proj")


@pytest.mark.parametrize(
    "values",
    [{"model_type": "perceptron"}, {"model_type": "t5"}, {"hidden_act": "wink"},
     {"rms_norm_eps": "small"}, {"rope_parameters": {"rope_type": "square"}}],
)  # fmt: skip
def test_a_config_that_transformers_cannot_build(model, tmp_path, values):
    change_config(model, **values)
    refused(recipe(model), tmp_path / "out", UnsupportedError, str(model), "config.json")


def test_fp8_weights_are_recognised(model, tmp_path):
    fp8 = torch.float8_e4m3fn
    change_tensors(model, lambda tensors: tensors.update({DOWN: tensors[DOWN].to(fp8)}))
    refused(recipe(model), tmp_path / "out", UnsupportedError, DOWN, "float8_e4m3fn", "16-bit")


def test_quantized_sources_are_recognised(model, tmp_path):
    change_config(model, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(recipe(model), tmp_path / "out", UnsupportedError, "already quantized (gptq)", "16-bit")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float64])
def test_weights_of_other_dtypes(model, tmp_path, dtype):
    change_tensors(model, lambda tensors: tensors.update({DOWN: tensors[DOWN].to(dtype)}))
    name = str(dtype).removeprefix("torch.")
    refused(recipe(model), tmp_path / "out", UnsupportedError, DOWN, name, "expected float16")


def test_remote_code_runs_only_when_asked_for(model, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    ran = tmp_path / "ran"
    (model / "own.py").write_text(OWN_CODE.format(ran=str(ran)))
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    change_config(model, model_type="own", auto_map=own)
    refused(recipe(model), tmp_path / "out", UnsupportedError, "auto_map", "--trust-remote-code")
    assert not ran.exists()
    trusting = replace(recipe(model), trust_remote_code=True)
    assert quantize(trusting, tmp_path / "out").proof["logits"]["by"] == "transformers"
    assert ran.exists()
    assert (tmp_path / "out" / "own.py").read_bytes() == (model / "own.py").read_bytes()


def test_a_model_that_is_not_there(tmp_path):
    for model, expected in [
        (tmp_path / "none", "no such model directory"),
        (__file__, "found a file"),
        ("just-a-name", "no such model directory"),
        ("a" * 5000, "no such model directory"),
        ("nul\x00", "no such model directory"),
        ("no:such/name", "no such directory"),
    ]:
        refused(recipe(model), tmp_path / "out", CheckpointError, expected)
