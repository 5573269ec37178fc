"""Tasks by the name that lm-evaluation-harness knows them under. Their data are downloaded."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from pennyweight.core.errors import DataError, UnknownNameError, UnsupportedError

OFFLINE = (
    "tasks by name are downloaded; without a network give a file of the task instead, "
    "as '--tasks arc_easy.jsonl' (docs/evaluation.md says what it may hold)"
)


def named_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks of these names; a group (mmlu) gives all its tasks.

    Raises UnknownNameError, DataError if the data cannot be had, and UnsupportedError for a task
    that runs code outside our sandbox.
    """
    manager = TaskManager()
    known = set(manager.all_tasks)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "see 'lm-eval ls tasks'"
            raise UnknownNameError(
                f"no task {name!r} in lm-evaluation-harness; {hint} A file is named with its "
                "suffix, .jsonl or .jsonl.gz"
            )
    return [task for name in names for task in _load(manager, name)]


def _load(manager: TaskManager, name: str) -> list[Task]:
    try:
        found = list(manager.load([name])["tasks"].values())
    # What a task's own code and the data library raise when there is no network, no such data set,
    # or a package of the task is missing.
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"task {name!r} cannot be loaded ({reason}); {OFFLINE}") from None
    for task in found:
        if getattr(task, "UNSAFE_CODE", False):
            raise UnsupportedError(
                f"task {task.task_name!r} runs code that the model wrote, without a sandbox; give "
                "HumanEval as a file ('--tasks HumanEval.jsonl.gz --run-code'), which has one"
            )
    return found
