"""What is learned over a whole block at once. One file a method; every one registers itself."""

from pennyweight.core import load_siblings
from pennyweight.train.base import TRAINERS

load_siblings(__name__, __path__)
__all__ = ["TRAINERS"]
