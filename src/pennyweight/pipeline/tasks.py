"""Ask a model and its reference the same questions, and say how much of the score is kept."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pennyweight.core import Progress
from pennyweight.core.errors import DataError, UnsupportedError
from pennyweight.core.record import Record, record_key
from pennyweight.evaluate.evaluation import plain
from pennyweight.evaluate.layouts import DESCRIPTIONS, REVISION, task_config
from pennyweight.evaluate.outcomes import TaskScores
from pennyweight.evaluate.recovery import (
    Average,
    Judging,
    Recoveries,
    Recovery,
    recoveries,
    score_interval,
)
from pennyweight.evaluate.sandbox import network_cut_off, run_program
from pennyweight.evaluate.task_files import TaskFile, is_task_file, read_task_file
from pennyweight.model.attention import AttentionFormats
from pennyweight.model.load import load_tokenizer
from pennyweight.model.tokens import BosRule, check_same_tokenizer, describe_bos
from pennyweight.model.writer import write_text
from pennyweight.pipeline.engine import Engine, Keeping, Run, describe_chat, fingerprint
from pennyweight.pipeline.evidence import known
from pennyweight.records import Clock, Store, provenance

if TYPE_CHECKING:
    from lm_eval.api.task import Task

STUDY = "eval tasks"
RECOVERY = "recovery_percent"  # of a task, in records
AVERAGE = "recovery_percent_average"  # of all tasks that were asked together
SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match", "last_number", "pass_at_1")
"""Metrics that are shares of items; in records they are percent."""


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What is asked and how. Two scores compare only if all of these are equal."""

    tasks: tuple[str, ...]  # names of lm-evaluation-harness, or files
    limit: int | None = None  # only the first items of each task
    shots: int | None = None  # examples before a question; None: as the task says
    new_tokens: int = 256  # most that are generated, where the task does not say
    bos: BosRule = "auto"
    chat_template: bool = False
    metric: str | None = None  # that tasks are judged by; None: acc_norm, else acc, ...
    run_code: bool = False  # run what the model wrote, in a sandbox (HumanEval)
    seed: int = 0  # of the examples


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a model is compared with."""

    model: str | Path
    noise_floor: bool = False  # ask it once more in bfloat16: what it then loses is noise


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """Scores, and what is kept of the reference's."""

    model: str
    reference: str
    scores: tuple[TaskScores, ...]
    comparison: Recoveries | None
    prompts: Mapping[str, str]  # task -> what was asked, in words; tasks from files only
    settings: TaskSettings
    bos: str
    chat_template: str
    noise_floor: str
    resumed: int  # tasks taken from the store
    code: str  # how programs were run; empty if none was

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; single answers stay in the samples file and the store."""
        found = asdict(self)
        for scores in found["scores"]:
            scores["items_count"] = len(scores.pop("values"))
        return {key: plain(value) for key, value in found.items()}


def evaluate_tasks(
    run: Run,
    settings: TaskSettings,
    *,
    against: Reference | None = None,
    judging: Judging | None = None,
    keeping: Keeping | None = None,
    progress: Progress | None = None,
) -> TaskReport:
    """Score `run`, and with `against` its reference; one model is in memory at a time.

    Raises DataError, UnknownNameError, UnsupportedError.
    """
    session = _Session(settings, keeping or Keeping(), judging or Judging(), progress or Progress())
    tokenizer = load_tokenizer(run.model)
    chat = describe_chat(tokenizer, settings.chat_template)
    runs = [run]
    if against is not None:
        check_same_tokenizer(tokenizer, load_tokenizer(against.model), [])
        runs.append(Run(model=against.model))
        if against.noise_floor:
            runs.append(Run(model=against.model, dtype=torch.bfloat16))
    scores = [session.scores(each) for each in runs]
    if session.keeping.samples is not None:
        lines = [json.dumps(row, default=str) for row in session.samples]
        write_text(session.keeping.samples, "\n".join(lines) + "\n")
    comparison = None
    if against is not None:
        again = scores[2] if against.noise_floor else ()
        comparison = recoveries(scores[0], scores[1], again=again, judging=session.judging)
    report = TaskReport(
        model=str(run.model),
        reference="" if against is None else str(against.model),
        scores=tuple(scores[0]),
        comparison=comparison,
        prompts={f.name: DESCRIPTIONS[f.layout] for f in session.files.values()},
        settings=settings,
        bos=describe_bos(tokenizer, settings.bos),
        chat_template=chat,
        noise_floor=_describe_floor(against),
        resumed=session.resumed,
        code=_describe_code(session.files.values()),
    )
    session.keep(report, runs)
    return report


class _Session:
    """The tasks of one command, loaded once and put to one model after the other."""

    def __init__(
        self, settings: TaskSettings, keeping: Keeping, judging: Judging, progress: Progress
    ) -> None:
        _check(settings)
        self.settings, self.keeping = settings, keeping
        self.judging, self.progress = judging, progress
        self.store = None if keeping.records is None else Store.open(keeping.records)
        files = [read_task_file(name) for name in settings.tasks if is_task_file(name)]
        for file in files:
            _check_file(file, settings)
        self.files: dict[str, TaskFile] = {file.name: file for file in files}
        self.tasks = self._tasks(files)
        self.samples: list[dict[str, Any]] = []
        self.resumed = 0

    def _tasks(self, files: Sequence[TaskFile]) -> dict[str, Task]:
        from pennyweight.evaluate.harness import FileTask
        from pennyweight.evaluate.named_tasks import named_tasks

        new_tokens, passes = self.settings.new_tokens, lambda program: run_program(program).passed
        found: list[Task] = [
            FileTask(file.items, task_config(file, new_tokens=new_tokens, passes=passes))
            for file in files
        ]
        if names := [name for name in self.settings.tasks if not is_task_file(name)]:
            self.progress.say(f"loading {', '.join(names)}")
            found += named_tasks(names)
        tasks = {task.task_name: task for task in found}
        if len(tasks) < len(found):
            names = sorted(task.task_name for task in found)
            twice = next(a for a, b in itertools.pairwise(names) if a == b)
            raise DataError(f"task {twice!r} is asked for twice; rename one of the files")
        return tasks

    def scores(self, run: Run) -> list[TaskScores]:
        """Of one model on every task, in their order."""
        model = fingerprint(run.model)
        found = {name: self._stored(self._identity(run, model, name)) for name in self.tasks}
        missing = [name for name, scores in found.items() if scores is None]
        self.resumed += len(found) - len(missing)
        if missing:
            lm = self._lm(run)
            for name in missing:
                found[name] = self._ask(run, lm, name, self._identity(run, model, name))
            del lm
            gc.collect()  # the next model needs the memory
        return [scores for scores in found.values() if scores is not None]

    def _lm(self, run: Run):
        from pennyweight.evaluate.harness import OneSampleModel

        engine = Engine.load(run)
        lm = OneSampleModel(
            engine.model, engine.tokenizer, limit=engine.limit, bos=self.settings.bos,
            stops=engine.stops, new_tokens=self.settings.new_tokens,
        )  # fmt: skip
        lm.mapper = run.mapper
        return lm

    def _ask(self, run: Run, lm: Any, name: str, identity: Mapping[str, Any]) -> TaskScores:
        from pennyweight.evaluate.harness import Asking, run_task

        clock, settings = Clock(), self.settings
        scores, samples = run_task(
            lm, self.tasks[name], Asking(
                limit=settings.limit, shots=settings.shots, chat=settings.chat_template,
                metric=settings.metric, seed=settings.seed,
            ),
        )  # fmt: skip
        mean = sum(scores.values) / len(scores.values)
        self.progress.say(
            f"{run.model} ({_name(run.dtype)}): {name} {scores.metric} {100 * mean:.2f} % of "
            f"{len(scores.values)}, {clock.elapsed_s:.0f} s"
        )
        if self.keeping.samples is not None:
            self.samples += [_sample(run, name, scores.metric, each) for each in samples]
        if self.store is not None:
            self.store.add(_score_records(run, scores, identity, clock, settings.seed))
        return scores

    def _setting(self, run: Run, model: str) -> dict[str, Any]:
        """Everything that a score depends on but the questions."""
        settings = asdict(self.settings)
        del settings["tasks"], settings["run_code"]
        attention = asdict(run.attention or AttentionFormats())
        return settings | {
            "fingerprint": model,
            "dtype": _name(run.dtype),
            "attention": {
                key: list(v) if isinstance(v, tuple) else v for key, v in attention.items()
            },
        }

    def _identity(self, run: Run, model: str, name: str) -> dict[str, Any]:
        """Everything that a score depends on."""
        file = self.files.get(name)
        return self._setting(run, model) | {
            "task": name,
            "revision": REVISION,
            "questions": file.digest if file else f"lm-eval {version('lm-eval')}",
        }

    def _stored(self, identity: Mapping[str, Any]) -> TaskScores | None:
        if self.store is None or self.keeping.samples is not None:
            return None
        found = self.store.find(study=STUDY, subject=identity)
        judged = [record for record in found if "scores" in record.detail]
        if not judged:
            return None
        kept: dict[str, Any] = {**judged[0].detail["scores"]}
        kept["values"] = tuple(kept["values"])
        return TaskScores(**kept)

    def keep(self, report: TaskReport, runs: Sequence[Run]) -> None:
        """Records of what compares the models: of every task, and of their average."""
        found = report.comparison
        if self.store is None or found is None:
            return
        models = [fingerprint(run.model) for run in runs[:2]]
        common = {
            "reference": models[1], "judging": asdict(self.judging),
            "noise_floor": report.noise_floor,
        }  # fmt: skip
        identities = {name: self._identity(runs[0], models[0], name) for name in self.tasks}
        records = [_recovery_record(report, each, identities[each.task] | common)
                   for each in found.tasks]  # fmt: skip
        if found.average is not None:
            questions = {name: each["questions"] for name, each in identities.items()}
            identity = self._setting(runs[0], models[0]) | common | {"tasks": questions}
            records.append(_recovery_record(report, found.average, identity))
        self.store.add([record for record in records if record.value == record.value])


def _recovery_record(
    report: TaskReport, found: Recovery | Average, identity: Mapping[str, Any]
) -> Record:
    assert report.comparison is not None, "there is something to keep"
    kept = found.recovery_percent
    return Record(
        study=STUDY,
        key=record_key(identity),
        subject=dict(identity) | {"model": report.model, "against": report.reference},
        metric=RECOVERY if isinstance(found, Recovery) else AVERAGE,
        value=kept.value,
        lower=known(kept.low),
        upper=known(kept.high),
        confidence=report.comparison.confidence,
        seed=report.comparison.judging.seed,
        detail={name: plain(value) for name, value in asdict(found).items()},
        **provenance(),
    )


def _score_records(
    run: Run, scores: TaskScores, identity: Mapping[str, Any], clock: Clock, seed: int
) -> list[Record]:
    """One for each metric; that of the metric which judges holds every item's score."""
    interval = score_interval(scores)
    records = []
    for metric, mean in (scores.metrics or {}).items():
        judges, unit = metric == scores.metric, 1 if metric in SHARES else 100
        records.append(
            Record(
                study=STUDY,
                key=record_key(identity),
                subject=dict(identity) | {"model": str(run.model)},
                metric=f"{metric}_percent" if metric in SHARES else metric,
                value=100 * mean if metric in SHARES else mean,
                lower=interval.low / unit if judges else None,
                upper=interval.high / unit if judges else None,
                confidence=0.95 if judges else None,
                data=scores.items,
                seed=seed,
                detail={"scores": asdict(scores)} if judges else {},
                **provenance(clock),
            )
        )
    return records


def _sample(run: Run, task: str, metric: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": str(run.model), "dtype": _name(run.dtype), "task": task, "item": sample["doc_id"],
        "metric": metric, "score": sample[metric], "target": sample["target"],
        "asked": sample["arguments"], "answered": sample["resps"],
        "filtered": sample["filtered_resps"],
    }  # fmt: skip


def _check(settings: TaskSettings) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise UnsupportedError(
            "tasks need lm-evaluation-harness; install it with pip install 'pennyweight[tasks]'"
        )
    if not settings.tasks:
        raise DataError("no task is named; expected names or files, as --tasks piqa,copa.jsonl")
    for name, value, least in (
        ("limit", settings.limit, 1), ("shots", settings.shots, 0),
        ("new_tokens", settings.new_tokens, 1),
    ):  # fmt: skip
        if value is not None and value < least:
            raise DataError(f"{name} is {value}; expected at least {least}")


def _check_file(file: TaskFile, settings: TaskSettings) -> None:
    if file.layout == "code" and not settings.run_code:
        raise UnsupportedError(
            f"{file.path}: is scored by running code that the model wrote; add --run-code to run "
            "it in a process with limits (better: in a container)"
        )
    if settings.shots is not None and settings.shots >= len(file.items):
        raise DataError(
            f"{file.path}: {settings.shots} examples are asked for, but it holds {len(file.items)} "
            "items, and an item is no example of itself"
        )


def _describe_floor(against: Reference | None) -> str:
    if against is None:
        return ""
    if against.noise_floor:
        return "the reference again in bfloat16"
    return "0 (one sample at a time: the reference repeats itself bit for bit)"


def _describe_code(files: Any) -> str:
    if not any(file.layout == "code" for file in files):
        return ""
    network = "without a network" if network_cut_off() else "WITH the network: no user namespaces"
    return f"programs ran in processes with limits, {network}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
