"""An engine that sends everything as another process would get it, and what to compare."""

import pickle
from collections.abc import Iterator
from dataclasses import replace

from pennyweight.core.record import Record
from pennyweight.records import Store


class Sent:
    """Function, items and results go through pickle; the work is done here."""

    is_local = False

    def __init__(self) -> None:
        self.count = 0

    def map(self, function, items) -> Iterator:
        there = pickle.loads(pickle.dumps(function))
        for item in items:
            self.count += 1
            yield pickle.loads(pickle.dumps(there(pickle.loads(pickle.dumps(item)))))

    def close(self) -> None:
        pass


def said(store: Store) -> list[Record]:
    """The records without what says who measured them, and when."""
    nobody = {"versions": {}, "machine": "", "wall_time_s": None, "peak_bytes": None, "made_at": ""}
    return [replace(record, **nobody) for record in store.find()]
