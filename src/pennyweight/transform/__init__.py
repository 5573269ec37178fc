"""Rewrites that leave the function unchanged. One file each; every one registers itself."""

from pennyweight.core import load_siblings
from pennyweight.transform.base import TRANSFORMS

load_siblings(__name__, __path__)
__all__ = ["TRANSFORMS"]
