"""What every export target promises, and what the packed layout says when it is broken."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pennyweight.core import CheckpointError, FormatError, UnknownNameError, UnsupportedError
from pennyweight.export import TARGETS
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.load import load_model
from pennyweight.model.opened import open_checkpoint
from pennyweight.pipeline.finish import export
from pennyweight.pipeline.prove import prove
from pennyweight.pipeline.quantize import quantize
from tests.end_to_end.models import build, make_recipe, save, save_tokens

SCHEMES = ("W3A16_g32_asym", "W8A8_static")


@pytest.fixture(scope="module", params=["llama", "gpt2", "mixtral"])
def kept(request, tmp_path_factory):
    """A source model, and the work directory of a run on it."""
    folder = tmp_path_factory.mktemp(request.param)
    source = save(build(request.param), folder / "source")
    rules = [{"match": "*.0.*", "scheme": SCHEMES[0]}, {"scheme": SCHEMES[1]}]
    rules = [rule | {"quantizer": "rtn"} for rule in rules]
    recipe = make_recipe(source, save_tokens(folder), *rules)
    quantize(recipe, folder / "out", threads=2, keep_work=True)
    return source, folder / "out.work", folder / "out"


@pytest.mark.parametrize("target", list(TARGETS))
def test_a_target_is_proven_and_holds_the_same_weights(target, kept, tmp_path):
    source, work, first = kept
    proof = export(work, tmp_path / "out", target=target)
    assert prove(tmp_path / "out", source)["weights"] == proof["weights"]
    expected, found = (load_model(path).state_dict() for path in (first, tmp_path / "out"))
    assert set(expected) == set(found)
    for name, wanted in expected.items():
        if not TARGETS[target].exact and wanted.is_floating_point():
            wanted = wanted.to(torch.float32)  # of the source, in which it is stored
        assert torch.equal(found[name], wanted), name


def test_packed_runs_as_compressed_tensors_does(kept, tmp_path):
    _, work, first = kept
    export(work, tmp_path / "out", target="packed")
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        one, other = (load_model(path)(input_ids=ids).logits for path in (first, tmp_path / "out"))
    assert torch.equal(one, other)


def test_dense_is_an_ordinary_checkpoint(kept, tmp_path):
    source, work, _ = kept
    export(work, tmp_path / "out", target="dense")
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    before, after = Checkpoint.open(source), Checkpoint.open(tmp_path / "out")
    assert {k: (v.dtype, v.shape) for k, v in before.tensors.items()} == {
        k: (v.dtype, v.shape) for k, v in after.tensors.items()
    }


def test_an_unknown_target_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'packed'"):
        make_recipe("model", "tokens.json", {"quantizer": "rtn"}, target="paked")


@pytest.fixture
def packed(tmp_path):
    source = save(build("llama"), tmp_path / "source")
    rule = {"scheme": SCHEMES[0], "quantizer": "rtn"}
    recipe = make_recipe(source, save_tokens(tmp_path), rule, target="packed")
    return quantize(recipe, tmp_path / "out", threads=1).path


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] |= changes
    (path / "config.json").write_text(json.dumps(config))


LINEAR = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "changes,error,message",
    [
        ({"version": 1}, UnsupportedError, "version 1; this Pennyweight reads 2"),
        ({"scale_dtype": "int8"}, CheckpointError, "scale_dtype 'int8' is none of"),
        ({"schemes": {"W9A16": [LINEAR]}}, CheckpointError, "unknown scheme 'W9A16'"),
        ({"schemes": {SCHEMES[0]: ["model.x"]}}, CheckpointError, "model.x: has a scheme but no"),
        ({"schemes": 3}, CheckpointError, "quantization_config of config.json: schemes"),
        ({"shapes": {}}, CheckpointError, "no shape in config.json"),
    ],
)
def test_a_config_that_does_not_fit_is_a_clear_error(packed, changes, error, message):
    edit_config(packed, **changes)
    with pytest.raises(error, match=message):
        open_checkpoint(packed)


def test_a_missing_or_wrong_part_names_the_tensor(packed):
    file = packed / "model.safetensors"
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if k != f"{LINEAR}.weight.scale"}, file)
    with pytest.raises(CheckpointError, match=r"q_proj.weight.scale is missing"):
        open_checkpoint(packed)
    edit_config(packed, shapes={LINEAR: [64, 96]} | _shapes_but(packed, LINEAR))
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"of a \[64, 96\] weight has torch.uint8 \[64, 36\]"):
        open_checkpoint(packed)


def _shapes_but(path, name):
    config = json.loads((path / "config.json").read_text())["quantization_config"]
    return {k: v for k, v in config["shapes"].items() if k != name}


def test_compressed_tensors_refuses_kept_weights():
    part = (torch.float16, (1,))
    linear = _linear_with({"codes": part, "sparse.values": part})
    with pytest.raises(FormatError, match="has no place for weights kept beside the codes"):
        TARGETS["compressed-tensors"].parts(linear)


def _linear_with(stored):
    from pennyweight.export.base import Linear
    from pennyweight.formats.schemes import parse_scheme

    return Linear(
        name="x", scheme=parse_scheme("W4A16"), shape=(8, 64), dtype=torch.bfloat16,
        stored=stored, read={}.__getitem__, load=lambda: None,
    )  # fmt: skip
