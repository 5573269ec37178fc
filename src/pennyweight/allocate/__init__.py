"""Which unit gets which scheme. One file for each way to decide; every file registers itself."""

from pennyweight.allocate.base import ALLOCATORS
from pennyweight.core import load_siblings

load_siblings(__name__, __path__)
__all__ = ["ALLOCATORS"]
