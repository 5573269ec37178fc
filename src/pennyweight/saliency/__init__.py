"""How much a weight matters: a score for each, and the choice of those that score highest."""

from pennyweight.core import load_siblings
from pennyweight.saliency.base import SALIENCIES

load_siblings(__name__, __path__)
__all__ = ["SALIENCIES"]
