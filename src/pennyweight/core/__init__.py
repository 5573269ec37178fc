"""The nouns: small frozen dataclasses that every other package passes around."""

from pennyweight.core.correction import Correction, LowRank, Sparse
from pennyweight.core.errors import (
    BudgetError,
    CheckpointError,
    DataError,
    FormatError,
    NumericalError,
    PennyweightError,
    RecipeError,
    UnknownNameError,
    UnsupportedError,
)
from pennyweight.core.format import Format, Grid, QTensor, VectorGrid, blocked, plain
from pennyweight.core.parallel import Mapper, Serial
from pennyweight.core.progress import Progress
from pennyweight.core.quantized import Quantized
from pennyweight.core.registry import Registry, load_siblings
from pennyweight.core.scheme import ActivationFormat, Scheme
from pennyweight.core.stats import Stats

__all__ = [
    "ActivationFormat",
    "BudgetError",
    "CheckpointError",
    "Correction",
    "DataError",
    "Format",
    "FormatError",
    "Grid",
    "LowRank",
    "Mapper",
    "NumericalError",
    "PennyweightError",
    "Progress",
    "QTensor",
    "Quantized",
    "RecipeError",
    "Registry",
    "Scheme",
    "Serial",
    "Sparse",
    "Stats",
    "UnknownNameError",
    "UnsupportedError",
    "VectorGrid",
    "blocked",
    "load_siblings",
    "plain",
]
