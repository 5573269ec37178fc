"""Post-training quantization for language models.

The verbs of the command line are functions here: `check`, `quantize`, `export`, `prove` and
`evaluate`. They raise `PennyweightError` for what a caller can mend. They are imported when they
are first used, because torch takes seconds to import and `pennyweight --help` should not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pennyweight.core.errors import PennyweightError
    from pennyweight.pipeline.check import check
    from pennyweight.pipeline.evaluate import evaluate
    from pennyweight.pipeline.finish import export
    from pennyweight.pipeline.prove import prove
    from pennyweight.pipeline.quantize import quantize
    from pennyweight.pipeline.recipe import Calibrate, Recipe, Rule

__version__ = "0.1.0"

__all__ = [
    "Calibrate",
    "PennyweightError",
    "Recipe",
    "Rule",
    "check",
    "evaluate",
    "export",
    "prove",
    "quantize",
]

_HOMES = {
    "Calibrate": "pipeline.recipe",
    "PennyweightError": "core.errors",
    "Recipe": "pipeline.recipe",
    "Rule": "pipeline.recipe",
    "check": "pipeline.check",
    "evaluate": "pipeline.evaluate",
    "export": "pipeline.finish",
    "prove": "pipeline.prove",
    "quantize": "pipeline.quantize",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
