"""What is on disk after a run: valid for the library, complete, and of the size that was said."""

import json
import shutil

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pennyweight.export import checkpoint as exporter
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.compressed import CompressedCheckpoint
from pennyweight.model.load import load_model
from pennyweight.pipeline.check import check
from pennyweight.pipeline.quantize import quantize
from tests.end_to_end.models import VOCAB, build, contents, make_recipe, save, save_tokens

RTN = {"scheme": "W4A16_g32", "quantizer": "rtn"}


@pytest.fixture
def source(tmp_path):
    """A plain Llama, and calibration ids beside it."""
    return save(build("llama"), tmp_path / "source")


@pytest.fixture
def run(tmp_path):
    """Quantize `model` by rules into a fresh directory."""
    count = iter(range(100))

    def quantize_model(model, *rules, **top):
        recipe = make_recipe(model, save_tokens(tmp_path), *rules or (RTN,), **top)
        return quantize(recipe, tmp_path / f"out{next(count)}", threads=2)

    return quantize_model


def bytes_of_tensors(folder) -> int:
    return sum(info.size_bytes for info in Checkpoint.open(folder).tensors.values())


MIXED = [
    {"match": "*.q_proj.weight", "scheme": "W16A16"},
    {"match": "*.self_attn.*", "scheme": "W8A16", "quantizer": "mse_clip"},
    {"match": "*.1.mlp.down_proj.weight", "scheme": "W6A16_g32", "quantizer": "gptq"},
    {"match": "*", "scheme": "W4A16_g32", "quantizer": "hqq"},
]
WITH_ACTIVATIONS = [{"match": "*.self_attn.*", "scheme": "W8A8"}, *MIXED[2:]]


@pytest.mark.parametrize(
    "rules",
    [[RTN], [{"scheme": "W8A8_static"}], [{"scheme": "W3A16_asym"}], MIXED, WITH_ACTIVATIONS],
)
def test_the_config_is_one_that_the_library_accepts(rules, source, run):
    result = run(source, *rules)
    config = json.loads((result.path / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == json.loads((source / "config.json").read_text())
    assert quantization["quant_method"] == "compressed-tensors"
    assert quantization["quantization_status"] == "compressed"
    parsed = QuantizationConfig.model_validate(quantization)
    assert "lm_head" in parsed.ignore
    schemes = {rule["scheme"] for rule in rules} - {"W16A16"}
    assert len(parsed.config_groups) == len(schemes)


def test_two_schemes_are_two_groups_and_transformers_agrees(source, run):
    result = run(source, *MIXED)
    exported = CompressedCheckpoint.open(result.path)
    found = {name.removeprefix("model.layers."): s.name for name, s in exported.schemes.items()}
    assert found["0.self_attn.k_proj"] == "W8A16" and found["1.mlp.down_proj"] == "W6A16_g32"
    assert found["0.mlp.down_proj"] == found["1.mlp.up_proj"] == "W4A16_g32"
    assert not any("q_proj" in name for name in found)
    config = json.loads((result.path / "config.json").read_text())["quantization_config"]
    assert config["format"] == "pack-quantized"
    assert "model.layers.0.self_attn.q_proj" in config["ignore"]
    assert result.proof["logits"]["largest_difference"] <= result.proof["logits"]["allowed"]


@pytest.mark.parametrize(
    ("rules", "why"),
    [(WITH_ACTIVATIONS, "activations"), ([MIXED[1], {"scheme": "W4A16_asym"}], "zero points")],
)
def test_what_transformers_cannot_reload_is_said(rules, why, source, run):
    result = run(source, *rules)
    assert why in result.proof["logits"]["skipped"]
    assert result.proof["logits"]["skipped"] in (result.path / "README.md").read_text()
    config = json.loads((result.path / "config.json").read_text())["quantization_config"]
    layouts = {group["format"] for group in config["config_groups"].values()}
    assert (config["format"] == "mixed-precision") == (len(layouts) == 2)


def test_shards_in_and_out(tmp_path, run, monkeypatch):
    source = save(build("llama"), tmp_path / "source", shard="60KB")
    shards = list(source.glob("*.safetensors"))
    assert len(shards) > 2
    whole = run(source).path
    assert [file.name for file in whole.glob("*.safetensors")] == ["model.safetensors"]
    monkeypatch.setattr(exporter, "SHARD_BYTES", 30_000)
    parted = run(source).path
    index = json.loads((parted / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == bytes_of_tensors(parted) == bytes_of_tensors(whole)
    files = sorted(parted.glob("*.safetensors"))
    assert {file.name for file in files} == set(index["weight_map"].values()) and len(files) > 2
    for file in files:
        tensors = load_file(file)
        assert {n for n, where in index["weight_map"].items() if where == file.name} == set(tensors)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 30_000
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    joined = {k: v for file in files for k, v in load_file(file).items()}
    expected = load_file(whole / "model.safetensors")
    assert set(joined) == set(expected)
    assert all(torch.equal(joined[name], expected[name]) for name in joined)


def test_tensors_that_the_model_does_not_use_are_carried_over(source, run):
    tensors = load_file(source / "model.safetensors")
    extra = {
        "model.mtp.weight": torch.randn(96, 64, dtype=torch.float64),
        "model.layers.2.mlp.down_proj.weight": torch.randn(64, 96),  # a head behind the last block
        "visual.patch.weight": torch.full((4, 3, 2, 2), float("nan"), dtype=torch.bfloat16),
        "steps": torch.tensor(7),
        "empty": torch.empty(0, 5, dtype=torch.int8),
    }
    save_file(tensors | extra, source / "model.safetensors", {"format": "pt"})
    result = run(source)
    stored = load_file(result.path / "model.safetensors")
    for name, tensor in extra.items():
        assert stored[name].dtype is tensor.dtype and stored[name].shape == tensor.shape
        assert (
            stored[name].numpy(force=True).tobytes() == tensor.numpy().tobytes()
            if (tensor.dtype is not torch.bfloat16)
            else torch.equal(stored[name].view(torch.int16), tensor.view(torch.int16))
        )
    assert any("not part of the decoder" in line for line in result.check.warnings)
    assert result.proof["logits"]["largest_difference"] <= result.proof["logits"]["allowed"]


def test_side_files_are_copied_byte_for_byte(source, run):
    side = {
        "chat_template.jinja": b"{{ messages }}\r\n\xff",
        "README.md": b"# the source's own card",
        "plan.json": b"{}",
        "assets/vocab.bpe": bytes(range(256)),
        "assets/deeper/merges.txt": b"",
        "LICENSE": b"some",
    }
    for name, data in side.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    for name in ("pytorch_model.bin", "consolidated.pth", "model.gguf"):
        (source / name).write_bytes(b"weights")
    (source / ".cache").mkdir()
    (source / ".cache" / "x").write_bytes(b"")
    result = run(source)
    found = contents(result.path)
    renamed = {"README.md": "source_README.md", "plan.json": "source_plan.json"}
    for name, data in side.items():
        assert found[renamed.get(name, name)] == data
    before = contents(source)
    assert found["generation_config.json"] == before["generation_config.json"]
    dropped = result.proof["census"]["dropped_files"]
    assert set(dropped) == {"pytorch_model.bin", "consolidated.pth", "model.gguf"}
    assert not set(dropped) & set(found) and not any(name.startswith(".") for name in found)
    card = found["README.md"].decode()
    assert all(name in card for name in dropped) and "base_model" in card


def test_a_tied_head_stays_one_tensor(tmp_path, run):
    source = save(build("llama", tie_word_embeddings=True), tmp_path / "source")
    assert "lm_head.weight" not in load_file(source / "model.safetensors")
    result = run(source)
    stored = load_file(result.path / "model.safetensors")
    assert "lm_head.weight" not in stored and "model.embed_tokens.weight" in stored
    model = load_model(result.path)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert result.proof["logits"]["largest_difference"] <= result.proof["logits"]["allowed"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scheme", ["W4A16_g32_asym", "W8A8_static"])
def test_every_dtype_of_source(dtype, scheme, tmp_path, run):
    source = save(build("llama"), tmp_path / "source", dtype=dtype)
    result = run(source, {"scheme": scheme})
    stored = load_file(result.path / "model.safetensors")
    before = load_file(source / "model.safetensors")
    for name, tensor in stored.items():
        if name in before and tensor.dtype != torch.int8:
            assert torch.equal(tensor, before[name])
        if name.endswith("_scale"):
            assert tensor.dtype is dtype  # engines multiply in the dtype of the model
    assert result.proof["logits"]["largest_difference"] <= result.proof["logits"]["allowed"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_static_input_scales_are_stored_as_they_were_computed_with(dtype, tmp_path):
    source = save(build("llama"), tmp_path / "source", dtype=dtype)
    recipe = make_recipe(source, save_tokens(tmp_path), {"scheme": "W8A8_static"})
    result = quantize(recipe, tmp_path / "out", keep_work=True)
    exported, finished = CompressedCheckpoint.open(result.path), {}
    for file in (tmp_path / "out.work").glob("block_*.safetensors"):
        finished |= load_file(file)
    assert len(exported.schemes) == 14
    for name in exported.schemes:
        assert torch.equal(exported.input_scale(name), finished[f"{name}.weight.input_scale"])


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", ["", "_g32"])
@pytest.mark.parametrize("asym", ["", "_asym"])
def test_every_weight_only_scheme_is_proven_and_of_the_reported_size(bits, group, asym, tmp_path):
    source = save(build("llama", num_hidden_layers=1), tmp_path / "source", dtype=torch.bfloat16)
    rule = {"scheme": f"W{bits}A16{group}{asym}", "quantizer": "rtn"}
    recipe = make_recipe(source, save_tokens(tmp_path), rule)
    report = check(recipe)
    result = quantize(recipe, tmp_path / "out", threads=1)
    assert result.check == report
    assert result.proof["logits"]["largest_difference"] <= result.proof["logits"]["allowed"]
    assert report.bytes_before == bytes_of_tensors(source)
    assert report.bytes_after == bytes_of_tensors(result.path)
    exported = CompressedCheckpoint.open(result.path)
    linears = [n for n in exported.stored if n not in Checkpoint.open(source).tensors]
    stored = sum(exported.stored[name].size_bytes for name in linears)
    weights = sum(len(row) for n in exported.schemes for row in exported.read(f"{n}.weight"))
    assert report.bits_per_weight == 8 * stored / weights
    header = 8 * 1024  # names and shapes of some thirty tensors
    size = (result.path / "model.safetensors").stat().st_size
    assert 0 < size - report.bytes_after < header


@pytest.mark.parametrize("scheme", ["W8A8", "W8A8_static"])
def test_int8_is_of_the_reported_size(scheme, source, run):
    result = run(source, {"scheme": scheme})
    assert result.check.bytes_after == bytes_of_tensors(result.path)


def test_the_output_can_be_quantized_from_only_once(source, run):
    from pennyweight.core import UnsupportedError

    result = run(source)
    with pytest.raises(UnsupportedError, match="already quantized"):
        run(result.path)


def test_what_is_read_back_is_what_the_file_says(source, run):
    """Our reader against the formula, written out."""
    result = run(source, {"scheme": "W4A16_g32_asym", "quantizer": "rtn"})
    name = "model.layers.0.mlp.down_proj"
    stored = load_file(result.path / "model.safetensors")
    words = stored[f"{name}.weight_packed"].view(torch.uint8).to(torch.int64)
    codes = torch.stack((words & 15, words >> 4), -1).view(64, 96)
    zeros = stored[f"{name}.weight_zero_point"].T.contiguous().view(torch.uint8).to(torch.int64)
    zeros = torch.stack((zeros & 15, zeros >> 4), -1).view(3, 64).T
    scale = stored[f"{name}.weight_scale"].float()
    by_group = lambda value: value.repeat_interleave(32, 1)
    expected = (codes - by_group(zeros)) * by_group(scale)
    assert torch.equal(CompressedCheckpoint.open(result.path).read(f"{name}.weight"), expected)
    original = load_file(source / "model.safetensors")[f"{name}.weight"]
    assert ((expected - original).abs() <= by_group(scale)).all()


def test_the_model_loads_here_with_rounded_activations(source, run, tmp_path):
    ids = torch.randint(3, VOCAB, (1, 20), generator=torch.Generator().manual_seed(0))
    weights_only = run(source, {"scheme": "W8A16", "quantizer": "rtn"}).path
    both = run(source, {"scheme": "W8A8", "quantizer": "rtn"}).path
    with torch.no_grad():
        exact, a, b = (load_model(path)(ids).logits for path in (source, weights_only, both))
    assert 0 < (a - exact).std() < (b - exact).std() < 0.05 * exact.std()
    shutil.rmtree(tmp_path / "source")  # a quantized checkpoint stands alone
    load_model(both)
