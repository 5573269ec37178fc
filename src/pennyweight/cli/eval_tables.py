"""What `eval --tasks` and `eval --similarity` print."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pennyweight.evaluate import Interval
    from pennyweight.evaluate.recovery import Average, Recoveries, Recovery
    from pennyweight.evaluate.similarity import Degeneration
    from pennyweight.pipeline.similarity import SimilarityReport
    from pennyweight.pipeline.tasks import TaskReport


def show_tasks(report: "TaskReport", console: Console) -> None:
    """Scores of a model; with a reference, what it keeps of them."""
    if report.comparison:
        table = Table("task", "items", "reference", "model", "recovery, %", "verdict")
        table.columns[0].overflow = "fold"
        for each in report.comparison.tasks:
            _task_row(table, each)
        if average := report.comparison.average:
            table.add_section()
            _average_row(table, average)
    else:
        table = Table("task", "items", "score, %")
        for scores in report.scores:
            mean = 100 * sum(scores.values) / len(scores.values)
            table.add_row(
                f"{scores.task} ({scores.metric})", str(len(scores.values)), f"{mean:.2f}"
            )
    console.print(table)
    for line in _task_conditions(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _task_row(table: Table, each: "Recovery") -> None:
    table.add_row(
        f"{each.task} ({each.metric})", str(each.items), f"{each.reference.value:.2f}",
        f"{each.score.value:.2f}", _with_ends(each.recovery_percent, ".2f"), str(each.verdict),
    )  # fmt: skip


def _average_row(table: Table, average: "Average") -> None:
    table.add_row(
        f"average of {len(average.tasks)}", "", f"{average.reference.value:.2f}",
        f"{average.score.value:.2f}", _with_ends(average.recovery_percent, ".2f"),
        str(average.verdict),
    )  # fmt: skip


def _task_conditions(report: "TaskReport") -> list[str]:
    settings = report.settings
    against = f" against {report.reference}" if report.reference else ""
    limit = f"the first {settings.limit} items of each task" if settings.limit else "all items"
    shots = ", ".join(f"{scores.task} {scores.shots}" for scores in report.scores if scores.shots)
    lines = [
        f"model: {report.model}{against}",
        f"asked: {limit}; examples before a question: {shots or 'none'}; BOS {report.bos}; chat "
        f"template: {report.chat_template}",
    ]
    if cut := sum(scores.cut for scores in report.scores):
        lines.append(f"cut: {cut} questions lost their beginning, which did not fit the context")
    if report.code:
        lines.append(f"code: {report.code}")
    if report.resumed:
        lines.append(f"resumed: {report.resumed} scores of tasks are from the records")
    return lines + (_comparison_conditions(report, report.comparison) if report.comparison else [])


def _comparison_conditions(report: "TaskReport", found: "Recoveries") -> list[str]:
    judging = found.judging
    disagree = [
        f"{each.task} {each.only_reference} / {each.only_model} (p = {each.p_value:.3g})"
        for each in found.tasks
        if each.p_value is not None
    ]
    left_out = found.average.left_out if found.average else [each.task for each in found.tasks]
    lines = []
    if disagree:
        lines.append(f"right only in the reference / only in the model: {', '.join(disagree)}")
    if left_out and not judging.keep_chance:
        lines.append(
            f"not in the average, the reference is not above chance: {', '.join(left_out)}"
        )
    floors = [f"{each.task} {each.floor_percent:.2f} %" for each in found.tasks]
    measured = f": {', '.join(floors)}" if any(each.floor_percent for each in found.tasks) else ""
    return [
        *lines,
        f"verdict: a loss of {judging.budget_percent:g} % is allowed; noise floor: "
        f"{report.noise_floor}{measured}",
        f"interval: {found.confidence:.0%}, paired over items, {judging.resamples} draws, seed "
        f"{judging.seed}",
    ]


def show_similarity(report: "SimilarityReport", console: Console) -> None:
    """How alike the answers are, and how many are none."""
    found = report.found
    table = Table("", "value", f"{found.confidence:.0%} interval")
    rows = [
        ("ROUGE-1, %", found.rouge1_percent), ("ROUGE-L, %", found.rougeL_percent),
        ("equal answers, %", found.equal_percent),
        ("equal from the start, tokens", found.prefix_tokens),
        ("equal from the start, %", found.prefix_percent),
        *((name.replace("_percent", ", %"), each) for name, each in found.encoded.items()),
        ("length against the reference's, %", found.length_drift_percent),
        *_answers("model", found.model), *_answers("reference", found.reference),
    ]  # fmt: skip
    for name, interval in rows:
        known = interval.low == interval.low  # nan: nothing could be resampled
        ends = f"{interval.low:.2f} to {interval.high:.2f}" if known else "unknown"
        table.add_row(name, f"{interval.value:.2f}", ends)
    console.print(table)
    settings = report.settings
    cut = f", {report.cut} of them cut to fit" if report.cut else ""
    for line in (
        f"model: {report.model} against {report.reference}",
        f"prompts: {found.prompts} of {settings.prompts}{cut}; at most {settings.new_tokens} new "
        f"tokens, greedy; BOS {report.bos}; chat template: {report.chat_template}",
        f"interval: bootstrap over prompts, {found.resamples} resamples, seed {found.seed}; "
        "Wilson's for shares of answers",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _answers(who: str, found: "Degeneration") -> "list[tuple[str, Interval]]":
    return [
        (f"looping answers of the {who}, %", found.looping_percent),
        (f"empty answers of the {who}, %", found.empty_percent),
        (f"mean length, {who}, tokens", found.mean_tokens),
    ]


def _with_ends(interval: "Interval", form: str) -> str:
    if interval.value != interval.value:
        return "unknown"
    return f"{interval.value:{form}} ({interval.low:{form}} to {interval.high:{form}})"
