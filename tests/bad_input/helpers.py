"""What the tests of bad input share: a short recipe, and damage to a copy of a model."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pennyweight.core import PennyweightError
from pennyweight.model.checkpoint import INDEX
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Calibrate, Recipe, Rule


def recipe(model: Path, tokens: Path | None = None, **rule) -> Recipe:
    """Round to nearest; gptq on 8 samples of 16 tokens if there is a token file."""
    rule = {"scheme": "W4A16_g32", "quantizer": "gptq" if tokens else "rtn"} | rule
    data = Calibrate(data=(str(tokens or "stdlib"),), samples=8, tokens=16)
    return Recipe(model=str(model), rule=(Rule(**rule),), calibrate=data)


def refused(recipe: Recipe, out: Path, error: type[PennyweightError], *expected: str) -> str:
    """The message of the error that quantize raises; nothing is left under the name of OUT."""
    with pytest.raises(error) as raised:
        quantize(recipe, out)
    message = str(raised.value)
    for part in expected:
        assert part in message
    assert not out.exists()
    return message


def copy(model: Path, to: Path) -> Path:
    return Path(shutil.copytree(model, to))


def change_tensors(model: Path, change, file: str = "model.safetensors") -> None:
    """Let change(tensors) edit the dictionary of one file."""
    tensors = load_file(model / file)
    change(tensors)
    save_file(tensors, model / file, {"format": "pt"})


def change_config(model: Path, **values) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def shards(model: Path) -> list[Path]:
    """The files of a sharded model, in order."""
    assert (model / INDEX).is_file()
    return sorted(model.glob("*.safetensors"))


def contents(folder: Path) -> dict[str, bytes]:
    """File -> bytes of everything in a folder."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
