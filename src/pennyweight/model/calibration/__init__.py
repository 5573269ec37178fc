"""Where calibration text comes from. One file a source; every one registers itself."""

from pennyweight.core import load_siblings
from pennyweight.model.calibration.base import CALIBRATIONS, Request

load_siblings(__name__, __path__)
__all__ = ["CALIBRATIONS", "Request"]
