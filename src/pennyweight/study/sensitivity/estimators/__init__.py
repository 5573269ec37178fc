"""How to find out what a unit loses under a scheme: by measuring it, or cheaper."""

from pennyweight.core import load_siblings
from pennyweight.study.sensitivity.estimators.base import ESTIMATORS

load_siblings(__name__, __path__)
__all__ = ["ESTIMATORS"]
