"""Where measured results are kept: an append-only SQLite file, and where a number comes from."""

from pennyweight.records.provenance import Clock, provenance
from pennyweight.records.store import Store

__all__ = ["Clock", "Store", "provenance"]
