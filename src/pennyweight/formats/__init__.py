"""Number formats and their bytes. One file per grid; every grid registers itself."""

from pennyweight.core import load_siblings
from pennyweight.formats.base import GRIDS

load_siblings(__name__, __path__)
__all__ = ["GRIDS"]
