"""Pins: what they fix, and those that contradict one another or fit nothing."""

import pytest

from pennyweight.core import RecipeError, UnknownNameError
from pennyweight.study.planning.pins import Pin, parse_pin, pinned
from tests.study.tables import table, unit

TABLE = table(
    unit("layers.0.q+k", tensors=("layers.0.q.weight", "layers.0.k.weight")),
    unit("layers.0.down"),
)


def test_a_pin_is_of_every_unit_with_a_tensor_that_matches():
    pins = [parse_pin("*.k.weight = W8A16_g32"), parse_pin("layers.0.down=W16A16")]
    assert pinned(pins, TABLE) == {"layers.0.q+k": "W8A16_g32", "layers.0.down": "W16A16"}
    assert pinned([], TABLE) == {}


def test_two_pins_that_agree():
    pins = [Pin(pattern="*.q.*", scheme="W16A16"), Pin(pattern="*.k.*", scheme="W16A16")]
    assert pinned(pins, TABLE) == {"layers.0.q+k": "W16A16"}


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        (["*.v.weight=W16A16"], r"matches no tensor; names look like 'layers.0.q.weight'"),
        (["*.q.*=W8A16_g32", "*.k.*=W4A16_g32"],
         r"q\+k: pinned to W8A16_g32 by '\*.q.\*' and to W4A16_g32 by '\*.k.\*'"),
        (["*=W3A16_g32"], "was not measured in it, or cannot take it; it has W4A16_g32"),
    ],
)  # fmt: skip
def test_pins_that_cannot_be(pins, message):
    with pytest.raises(RecipeError, match=message):
        pinned([parse_pin(pin) for pin in pins], TABLE)


@pytest.mark.parametrize("text", ["", "*", "=W8A16", "*.q.*="])
def test_what_is_no_pin(text):
    with pytest.raises(RecipeError, match="expected PATTERN=SCHEME"):
        parse_pin(text)


def test_a_scheme_that_there_is_not():
    with pytest.raises(UnknownNameError, match="W9A16"):
        parse_pin("*=W9A16")
