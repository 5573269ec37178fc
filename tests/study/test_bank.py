"""A bank holds what the quantizer makes, counts it, and refuses to be mixed up."""

import pytest
import torch

from pennyweight.core import CheckpointError, FormatError, RecipeError
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.model.load import load_model
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Calibrate, Training
from pennyweight.study import bank as module
from tests.study.benches import SCHEMES, ingredients, make_bank

FEW = {"steps": 8}
DOWN = "model.layers.1.mlp.down_proj.weight"  # [64, 96]


@pytest.fixture(scope="module")
def bank(tiny_llama, token_file, tmp_path_factory, workers):
    return make_bank(tiny_llama, token_file, tmp_path_factory.mktemp("bank"), workers)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_are_those_of_the_quantizer(bank, scheme):
    for site in bank.survey.sites[::3]:
        expected = round_to_nearest(
            bank.survey.weight(site), parse_scheme(scheme, torch.float32).weight
        )
        assert torch.equal(bank.weight(site.tensor, scheme), expected.dequantize())


def test_stored_bits_by_hand(bank):
    # 64 rows of 96 codes of 3 bits are 36 bytes each, and three float32 scales
    assert bank.stored_bits(DOWN, "W3A16_g32") == 64 * (36 + 3 * 4) * 8
    assert bank.stored_bits(DOWN, "W16A16") == 64 * 96 * 32


def test_the_untouched_weight(bank):
    site = bank.survey.by_tensor[DOWN]
    assert torch.equal(bank.weight(DOWN, "W16A16"), bank.survey.weight(site))
    assert bank.input_scale(DOWN, "W16A16") is None


def test_a_second_opening_quantizes_nothing(bank, tiny_llama, token_file, workers, monkeypatch):
    monkeypatch.setattr(module, "Run", None)  # calling it would be an error
    again = make_bank(tiny_llama, token_file, bank.folder, workers)
    assert torch.equal(again.weight(DOWN, SCHEMES[0]), bank.weight(DOWN, SCHEMES[0]))


def test_another_model_is_an_error_that_says_so(bank, save_tiny, token_file, workers):
    other = save_tiny(vocab_size=120)
    with pytest.raises(CheckpointError, match=r"W3A16_g32.work: holds blocks of another run"):
        make_bank(other, token_file, bank.folder, workers)


def test_linears_are_as_a_trainer_leaves_them(tiny_llama, token_file, tmp_path, workers):
    """Bit for bit what the pipeline makes of the same recipe."""
    given = {"schemes": ("W2A16_g32",), "train": (Training(name="signround", options=FEW),)}
    bank = make_bank(tiny_llama, token_file, tmp_path / "bank", workers, **given)
    rules = [bank.ingredients.rule("W2A16_g32")]
    quantize(bank.ingredients.recipe(rules), tmp_path / "out", threads=1)
    built = load_model(tmp_path / "out", torch.float32)
    weight = bank.weight(DOWN, "W2A16_g32")
    assert torch.equal(built.get_parameter(DOWN), weight)
    rounded = round_to_nearest(
        bank.weight(DOWN, "W16A16"), parse_scheme("W2A16_g32", torch.float32).weight
    )
    assert not torch.equal(rounded.dequantize(), weight)


def test_a_trainer_of_more_than_linears_has_no_bank(tiny_llama, token_file):
    with pytest.raises(RecipeError, match="norm_tweaking also changes gains"):
        ingredients(tiny_llama, token_file, train=(Training(name="norm_tweaking"),))


def test_another_quantizer_or_calibration_text_is_an_error(
    tiny_llama, token_file, tmp_path, workers
):
    make_bank(tiny_llama, token_file, tmp_path, workers, quantizer="gptq", schemes=("W4A16_g32",))
    with pytest.raises(CheckpointError, match=r"tasks.* differs: found"):
        make_bank(
            tiny_llama, token_file, tmp_path, workers, schemes=("W4A16_g32",), quantizer="hqq"
        )
    fewer = Calibrate(data=(str(token_file),), samples=4, tokens=32)
    with pytest.raises(CheckpointError, match=r"calibrate .*differs: found .*8.*now .*4"):
        make_bank(
            tiny_llama, token_file, tmp_path, workers, quantizer="gptq", calibrate=fewer,
            schemes=("W4A16_g32",),
        )  # fmt: skip


def test_a_scheme_that_some_tensors_cannot_take(tiny_llama, token_file, tmp_path, workers):
    bank = make_bank(tiny_llama, token_file, tmp_path, workers, schemes=("W4A16_g64",))
    assert not bank.takes(DOWN, "W4A16_g64")
    assert bank.takes(DOWN.replace("down", "gate"), "W4A16_g64")
    with pytest.raises(FormatError, match="in_features 96 is not a multiple of group_size 64"):
        bank.weight(DOWN, "W4A16_g64")


def test_schemes_that_make_no_bank(tiny_llama, token_file, tmp_path, workers):
    with pytest.raises(FormatError, match="no tensor can take it: W4A16_g128: in_features 64"):
        make_bank(tiny_llama, token_file, tmp_path, workers, schemes=("W4A16_g128",))
    with pytest.raises(RecipeError, match="expected schemes besides W16A16"):
        make_bank(tiny_llama, token_file, tmp_path, workers, schemes=("W16A16",))


def test_static_scales_come_with_the_weight(tiny_llama, token_file, tmp_path, workers):
    bank = make_bank(tiny_llama, token_file, tmp_path, workers, schemes=("W8A8_static",))
    scale = bank.input_scale(DOWN, "W8A8_static")
    assert scale is not None and scale.shape == (1, 1) and float(scale) > 0
    assert bank.calibration is not None


def test_identity_depends_on_the_content(bank, tiny_llama, token_file, tmp_path, workers):
    same = make_bank(tiny_llama, token_file, tmp_path / "a", workers, schemes=SCHEMES[:1])
    other = make_bank(
        tiny_llama, token_file, tmp_path / "b", workers, schemes=SCHEMES[:1], quantizer="mse_clip"
    )
    assert same.identity(SCHEMES[0]) == bank.identity(SCHEMES[0]) != other.identity(SCHEMES[0])
    assert ingredients(tiny_llama, token_file) == bank.ingredients
