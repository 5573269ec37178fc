"""Files that other programs load. One file per target; every target registers itself."""

from pennyweight.core import load_siblings
from pennyweight.export.base import TARGETS

load_siblings(__name__, __path__)
__all__ = ["TARGETS"]
