"""The text of a question with choices, as zero-shot tasks are stored (ARC, PIQA, Winogrande, ...).

Three layouts, told apart by their keys: a query with choices; choices of a context with one
continuation; and a context with its continuation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pennyweight.core.errors import DataError

LAYOUTS = (  # keys of what is asked and of what is answered; one of them may be a list of choices
    ("query", "choices"),
    ("context_options", "continuation"),
    ("context", "continuation"),
)


def task_turns(record: Mapping[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    """The question and its right answer as turns of user and assistant; () if it is no task.

    Raises DataError if there is no gold label, or it names no choice.
    """
    for keys in LAYOUTS:
        if set(keys) <= record.keys():
            asked, answered = (_chosen(record, key, where) for key in keys)
            return (("user", asked), ("assistant", answered.removeprefix(" ")))
    return ()


def _chosen(record: Mapping[str, Any], key: str, where: str) -> str:
    """The value of a key, or the one of a list that the gold label names."""
    value = record[key]
    if isinstance(value, list):
        gold = record.get("gold")
        if type(gold) is not int or not 0 <= gold < len(value):
            raise DataError(
                f"{where}: 'gold' is {gold!r}; expected the number of the right one of "
                f"{len(value)} {key}, counted from 0"
            )
        value = value[gold]
    if not isinstance(value, str):
        raise DataError(f"{where}: {key!r} is {type(value).__name__}; expected a string")
    return value
