"""A bank, a text and a bench on a tiny random model, for the tests of sensitivities."""

from contextlib import contextmanager
from pathlib import Path

from pennyweight.evaluate import Settings
from pennyweight.pipeline.recipe import Calibrate
from pennyweight.study.bank import Bank, Ingredients
from pennyweight.study.sensitivity.sensing import Request, Sensing

SCHEMES = ("W3A16_g32", "W4A16_g32", "W8A16_g32")


def ingredients(model: Path, tokens: Path, quantizer: str = "rtn", **changes) -> Ingredients:
    calibrate = Calibrate(data=(str(tokens),), samples=8, tokens=32)
    values = {"model": str(model), "quantizer": quantizer, "calibrate": calibrate} | changes
    return Ingredients(**values)


def request(model: Path, tokens: Path, **changes) -> Request:
    quantizer = changes.pop("quantizer", "rtn")
    values = {
        "ingredients": ingredients(model, tokens, quantizer), "schemes": SCHEMES,
        "data": (str(tokens),), "settings": Settings(context=32, resamples=100, document_tokens=33),
    }  # fmt: skip
    return Request(**values | changes)


@contextmanager
def sensing(model: Path, tokens: Path, work: Path, **changes):
    with Sensing.open(request(model, tokens, **changes), work, threads=1) as opened:
        yield opened


def make_bank(model: Path, tokens: Path, folder: Path, workers, **changes) -> Bank:
    schemes = changes.pop("schemes", SCHEMES)
    return Bank.make(ingredients(model, tokens, **changes), schemes, folder, workers)
