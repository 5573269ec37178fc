"""GPTQ and AWQ checkpoints read as dense: packed here code by code, by their definitions."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pennyweight.core import CheckpointError, UnsupportedError
from pennyweight.evaluate.logits import last_logits
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.load import load_model
from pennyweight.model.opened import open_checkpoint
from tests.bad_input.helpers import change_config, change_tensors, copy

AWQ_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)
SITE = "model.layers.0.mlp.up_proj"


def stream_words(codes: list[int], bits: int) -> list[int]:
    """One long number, lowest code first, cut into signed 32-bit words."""
    number = sum(code << (bits * place) for place, code in enumerate(codes))
    words = [number >> (32 * i) & (2**32 - 1) for i in range(len(codes) * bits // 32)]
    return [word - 2**32 if word >= 2**31 else word for word in words]


def gptq_parts(codes, zeros, scales, g_idx, bits: int, *, version: str) -> dict[str, torch.Tensor]:
    """codes [out, in], zeros and scales [groups, out]."""
    qweight = torch.tensor([stream_words(row.tolist(), bits) for row in codes]).T
    rows = [stream_words(row.tolist(), bits) for row in zeros]
    if version == "gptq":  # one is taken off all fields of a row of words at once
        rows = [take_one_off(row, bits) for row in rows]
    parts = {"qweight": qweight, "qzeros": torch.tensor(rows), "g_idx": g_idx}
    parts = {name: part.to(torch.int32).contiguous() for name, part in parts.items()}
    return parts | {"scales": scales}


def take_one_off(words: list[int], bits: int) -> list[int]:
    """Word by word, borrowing inside a word; 3-bit fields cross words and are taken one by one."""
    if bits == 3:
        number = sum((w % 2**32) << (32 * i) for i, w in enumerate(words))
        fields = [(number >> (3 * i) & 7) for i in range(len(words) * 32 // 3)]
        return stream_words([(field - 1) % 8 for field in fields], 3)
    ones = sum(1 << shift for shift in range(0, 32, bits))
    wrapped = [(word % 2**32 - ones) % 2**32 for word in words]
    return [word - 2**32 if word >= 2**31 else word for word in wrapped]


def awq_words(values: torch.Tensor) -> torch.Tensor:
    """[rows, out] codes of 4 bits -> int32 [rows, out / 8]."""
    rows = []
    for row in values.tolist():
        eights = [row[i : i + 8] for i in range(0, len(row), 8)]
        rows.append([stream_words([eight[o] for o in AWQ_OUTPUTS], 4)[0] for eight in eights])
    return torch.tensor(rows, dtype=torch.int32)


def definition(codes, zeros, scales, g_idx) -> torch.Tensor:
    """weight[o, i] = scale[g, o] * (code[o, i] - zero[g, o]), one by one."""
    weight = torch.empty(codes.shape)
    for o in range(codes.shape[0]):
        for i in range(codes.shape[1]):
            g = int(g_idx[i])
            weight[o, i] = scales[g, o].float() * (float(codes[o, i]) - float(zeros[g, o]))
    return weight


def problem(out: int, cols: int, group: int, bits: int, seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randint(2**bits, shape, generator=random)
    scales = torch.rand(cols // group, out, generator=random).half()
    return draw(out, cols), draw(cols // group, out), scales


def save_linear(folder: Path, parts: dict[str, torch.Tensor], **config) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"x.{name}": part for name, part in parts.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("ordered", [False, True])
def test_gptq_is_its_definition(bits, version, ordered, tmp_path):
    codes, zeros, scales = problem(32, 64, 16, bits)
    zeros[:, ::5] = 0  # in the first version these borrow from their neighbours
    g_idx = torch.arange(64) // 16
    if ordered:
        g_idx = g_idx[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    parts = gptq_parts(codes, zeros, scales, g_idx, bits, version=version)
    path = save_linear(tmp_path, parts, quant_method="gptq", checkpoint_format=version)
    found = open_checkpoint(path)
    assert torch.equal(found.read("x.weight"), definition(codes, zeros, scales, g_idx))
    assert found.ordered("x") == ordered
    assert (found.linears["x"].bits, found.linears["x"].group_size) == (bits, 16)
    assert set(found.tensors) == {"x.weight"}


@given(st.integers(0, 2**31), st.sampled_from([8, 16, 32]))
def test_awq_is_its_definition(tmp_path_factory, seed, group):
    codes, zeros, scales = problem(16, 32, group, 4, seed)
    parts = {"qweight": awq_words(codes.T), "qzeros": awq_words(zeros), "scales": scales}
    path = save_linear(tmp_path_factory.mktemp("awq"), parts, quant_method="awq", version="gemm")
    found = open_checkpoint(path).read("x.weight")
    assert torch.equal(found, definition(codes, zeros, scales, torch.arange(32) // group))


def test_a_known_word_of_each_layout():
    """0x76543210 holds codes 0 to 7: inputs in order of GPTQ, outputs 0, 4, 1, 5, .. of AWQ."""
    from pennyweight.model.awq_layout import fields
    from pennyweight.model.gptq_layout import stream, zero_points

    word = torch.tensor([[0x76543210]], dtype=torch.int32)
    assert stream(word, 4, 8).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert zero_points(word, 4, 8, 1).tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert fields(word).tolist() == [[0, 4, 1, 5, 2, 6, 3, 7]]


@pytest.fixture(scope="module")
def gptq_llama(tiny_llama, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The tiny Llama with one linear in 4 bits, and what its weights stand for."""
    path = copy(tiny_llama, tmp_path_factory.mktemp("gptq") / "llama")
    codes, zeros, scales = problem(96, 64, 32, 4)
    scales, g_idx = scales / 64, torch.arange(64) // 32
    parts = gptq_parts(codes, zeros, scales, g_idx, 4, version="gptq")

    def change(tensors):
        del tensors[f"{SITE}.weight"]
        tensors.update({f"{SITE}.{name}": part for name, part in parts.items()})

    change_tensors(path, change)
    change_config(path, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32})
    dense = load_file(tiny_llama / "model.safetensors")
    return path, dense | {f"{SITE}.weight": definition(codes, zeros, scales, g_idx)}


def test_a_whole_model_computes_with_what_its_words_stand_for(gptq_llama, tiny_llama):
    path, dense = gptq_llama
    expected = load_model(tiny_llama)
    expected.get_parameter(f"{SITE}.weight").data = dense[f"{SITE}.weight"]
    ids = torch.arange(8)[None]
    assert torch.equal(*(last_logits(m, ids, 8) for m in (load_model(path), expected)))


def damage(path: Path, tmp_path: Path, change) -> Path:
    broken = copy(path, tmp_path / "broken")
    change_tensors(broken, change)
    return broken


def test_parts_that_do_not_belong_together_are_named(gptq_llama, tmp_path):
    key = f"{SITE}.qzeros"

    def shorter(tensors):
        tensors[key] = tensors[key][:1].contiguous()

    with pytest.raises(CheckpointError, match=r"up_proj: qweight .* do not belong to one gptq"):
        open_checkpoint(damage(gptq_llama[0], tmp_path / "a", shorter))
    with pytest.raises(CheckpointError, match=r"up_proj.qzeros is missing, which gptq needs"):
        open_checkpoint(damage(gptq_llama[0], tmp_path / "b", lambda tensors: tensors.pop(key)))

    def wider(tensors):
        tensors[key] = tensors[key].long()

    with pytest.raises(CheckpointError, match=r"qzeros: found torch.int64 .* torch.int32"):
        open_checkpoint(damage(gptq_llama[0], tmp_path / "c", wider))


def test_groups_without_a_scale_are_an_error(gptq_llama, tmp_path):
    def beyond(tensors):
        tensors[f"{SITE}.g_idx"] += 1

    broken = open_checkpoint(damage(gptq_llama[0], tmp_path, beyond))
    with pytest.raises(CheckpointError, match=r"g_idx: goes from 1 to 2; .* groups 0 to 1"):
        broken.read(f"{SITE}.weight")


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "gptq", "checkpoint_format": "marlin"},
        {"quant_method": "gptq", "is_marlin_format": True},
        {"quant_method": "awq", "version": "gemv"},
        {"quant_method": "awq", "version": "gemm", "bits": 3},
    ],
)
def test_other_versions_are_refused(gptq_llama, tmp_path, config):
    path = copy(gptq_llama[0], tmp_path / "other")
    change_config(path, quantization_config=config)
    with pytest.raises(UnsupportedError, match="this version reads"):
        open_checkpoint(path)


def test_a_config_without_packed_tensors_is_refused(tiny_llama, tmp_path):
    path = copy(tiny_llama, tmp_path / "dense")
    change_config(path, quantization_config={"quant_method": "awq"})
    with pytest.raises(CheckpointError, match=r"says awq, but there is no tensor X.qweight"):
        open_checkpoint(path)
    assert Checkpoint.open(path).tensors  # the files themselves are whole
