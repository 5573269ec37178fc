"""`pennyweight eval`: measure a model, alone or against a reference."""

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pennyweight.cli.options import names

if TYPE_CHECKING:
    from pennyweight.core import Progress
    from pennyweight.evaluate import Evaluation, Interval

Row = tuple[str, "Interval", str]
Shown = tuple[Any, Callable[[Any, Console], None]]  # what was found, and how it is printed


class BosRule(StrEnum):
    auto = "auto"
    always = "always"
    never = "never"


def eval_command(
    model: Annotated[str, typer.Argument(help="Model directory or Hub id.")],
    against: Annotated[
        str | None, typer.Option(help="Reference model to measure the distance from.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="stdlib-heldout (if none is given), stdlib, or a text file. Repeatable."),
    ] = None,
    split_at: Annotated[
        str | None,
        typer.Option(help=r"Regular expression that cuts texts, as '\n\n(?=Once upon a time)'."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens a window; 512 or the model's limit if not given.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="New tokens a window; the context if not given: no overlap.")
    ] = None,
    bos: Annotated[
        BosRule, typer.Option(help="Documents that begin with BOS; auto: as the tokenizer does.")
    ] = BosRule.auto,
    max_tokens: Annotated[int | None, typer.Option(help="Stop after this many tokens.")] = None,
    document_tokens: Annotated[
        int | None, typer.Option(help="Take only so many tokens of each document.")
    ] = None,
    kv_cache: Annotated[
        str | None,
        typer.Option(help="Round the model's keys and values, as int8, fp8_static, int4_g32_asym."),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(help="Round the operands of QK and PV, as int8; of one of them, as pv:fp8."),
    ] = None,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(help="Text for the scales of _static formats: stdlib (if none) or a file."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-evaluation-harness, or .jsonl files: piqa,copa.jsonl."),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Examples before a question; else as the task says.")
    ] = None,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Run code the model wrote (HumanEval), with limits.")
    ] = False,
    metric: Annotated[
        str | None, typer.Option(help="What tasks are judged by; else acc_norm, acc, ...")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=0, help="Loss of task scores that is allowed, percent [1].")
    ] = None,
    noise_floor: Annotated[
        bool, typer.Option("--noise-floor", help="Ask the reference again in bfloat16, for noise.")
    ] = False,
    keep_chance: Annotated[
        bool, typer.Option("--keep-chance", help="Average also tasks where the reference guesses.")
    ] = False,
    similarity: Annotated[
        bool, typer.Option("--similarity", help="Compare greedy answers with the reference's.")
    ] = False,
    prompts: Annotated[
        str | None, typer.Option(help="A prompt a line, .txt or .jsonl; else openings of a text.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Encoder of sentence-transformers: BERTScore and STS.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Items of each task [all], or prompts [64].")
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer: of tasks [256], of prompts [64].")
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Ask through the tokenizer's chat template.")
    ] = False,
    samples: Annotated[
        Path | None, typer.Option(help="JSON lines with every question and answer.")
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(help="SQLite file that gets the results; what it holds is not asked again."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of intervals and of examples.")] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; all if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and not a table.")] = False,
) -> None:
    """Measure perplexity and bits per byte, and with --against the distance from a reference.

    With --tasks instead: scores of tasks, and with --against how much of the reference's is kept.
    With --similarity: how alike greedy answers are. Every number has a 95 % interval.
    """
    # Here and not above: torch and transformers take seconds that --help should not.
    import torch

    from pennyweight.cli.progress import Bar
    from pennyweight.model.attention import AttentionFormats

    of_texts = {
        "data": data, "split_at": split_at, "context": context, "stride": stride,
        "max_tokens": max_tokens, "document_tokens": document_tokens,
    }  # fmt: skip
    of_tasks = {
        "shots": shots, "metric": metric, "run_code": run_code, "budget": budget,
        "noise_floor": noise_floor, "keep_chance": keep_chance,
    }  # fmt: skip
    of_answers = {"prompts": prompts, "encoder": encoder}
    of_both = {
        "limit": limit, "new_tokens": new_tokens, "chat_template": chat_template, "samples": samples
    }  # fmt: skip
    if tasks is not None and similarity:
        raise typer.BadParameter("--tasks and --similarity are two commands; give one of them")
    if tasks is not None:
        _refuse(of_texts | of_answers, "--tasks")
    elif similarity:
        _refuse(of_texts | of_tasks, "--similarity")
    else:
        _refuse(of_tasks | of_answers | of_both, "an evaluation over texts")
    if threads is not None:
        torch.set_num_threads(threads)
    rounded = AttentionFormats(
        kv_cache=kv_cache, **_products(attention), calibrate=tuple(calibrate or ["stdlib"])
    )
    common = {"against": against, "attention": rounded, "records": records, "seed": seed}
    common["bos"] = bos.value
    stderr = Console(stderr=True)
    with Bar(stderr) as progress, stderr.status(f"evaluating {model}"):
        if tasks is not None:
            found, show = _tasks(model, tasks, common, of_tasks | of_both, progress)
        elif similarity:
            found, show = _similarity(model, common, of_answers | of_both, progress)
        else:
            found, show = _texts(model, common, of_texts, progress)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        show(found, Console())


def _refuse(options: dict[str, Any], measure: str) -> None:
    """An option that would do nothing is a mistake."""
    for name, value in options.items():
        if value is not None and value is not False:
            option = f"--{name.replace('_', '-')}"
            raise typer.BadParameter(f"{option} says nothing to {measure}; leave it out")


def _texts(
    model: str, common: dict[str, Any], given: dict[str, Any], progress: "Progress"
) -> Shown:
    from pennyweight.evaluate import Settings
    from pennyweight.pipeline.evaluate import DEFAULT_DATA, prepare
    from pennyweight.pipeline.evidence import measured
    from pennyweight.records import Clock

    clock = Clock()
    names = ("context", "stride", "max_tokens", "document_tokens")
    measurement = prepare(
        model,
        against=common["against"],
        data=given["data"] or DEFAULT_DATA,
        split_at=given["split_at"],
        settings=Settings(
            bos=common["bos"], seed=common["seed"], **{name: given[name] for name in names}
        ),
        attention=common["attention"],
    )
    if common["records"] is None:
        return measurement(), show
    evaluation, resumed = measured(measurement, common["records"], clock)
    if resumed:
        progress.say(f"resumed: all numbers are from {common['records']}")
    return evaluation, show


def _tasks(
    model: str, tasks: str, common: dict[str, Any], given: dict[str, Any], progress: "Progress"
) -> Shown:
    from pennyweight.cli.eval_tables import show_tasks
    from pennyweight.evaluate.recovery import Judging
    from pennyweight.evaluate.verdict import DEFAULT_BUDGET_PERCENT
    from pennyweight.pipeline.engine import Keeping, Run
    from pennyweight.pipeline.tasks import Reference, TaskSettings, evaluate_tasks

    budget, against = given["budget"], common["against"]
    if against is None and given["noise_floor"]:
        raise typer.BadParameter("--noise-floor is the reference's; name it with --against")
    reference = against and Reference(model=against, noise_floor=given["noise_floor"])
    report = evaluate_tasks(
        Run(model=model, attention=common["attention"]),
        TaskSettings(
            tasks=names(tasks),
            limit=given["limit"],
            shots=given["shots"],
            new_tokens=given["new_tokens"] or 256,
            bos=common["bos"],
            chat_template=given["chat_template"],
            metric=given["metric"],
            run_code=given["run_code"],
            seed=common["seed"],
        ),
        against=reference,
        judging=Judging(
            budget_percent=DEFAULT_BUDGET_PERCENT if budget is None else budget,
            keep_chance=given["keep_chance"],
            seed=common["seed"],
        ),
        keeping=Keeping(records=common["records"], samples=given["samples"]),
        progress=progress,
    )
    return report, show_tasks


def _similarity(
    model: str, common: dict[str, Any], given: dict[str, Any], progress: "Progress"
) -> Shown:
    from pennyweight.cli.eval_tables import show_similarity
    from pennyweight.pipeline.engine import Keeping, Run
    from pennyweight.pipeline.similarity import (
        DEFAULT_PROMPTS,
        PROMPTS,
        AnswerSettings,
        compare_answers,
    )

    if common["against"] is None:
        raise typer.BadParameter("--similarity compares with a reference; name it with --against")
    report = compare_answers(
        Run(model=model, attention=common["attention"]),
        common["against"],
        settings=AnswerSettings(
            prompts=given["prompts"] or DEFAULT_PROMPTS,
            limit=given["limit"] or PROMPTS,
            new_tokens=given["new_tokens"] or 64,
            bos=common["bos"],
            chat_template=given["chat_template"],
            encoder=given["encoder"],
            seed=common["seed"],
        ),
        keeping=Keeping(records=common["records"], samples=given["samples"]),
        progress=progress,
    )
    return report, show_similarity


def _products(attention: str | None) -> dict[str, str]:
    """Product -> format, of `int8` (both), `qk:int8`, or `qk:int8,pv:fp8`."""
    if attention is None:
        return {}
    if ":" not in attention:
        return {"qk": attention, "pv": attention}
    parts = [part.partition(":") for part in attention.split(",")]
    found = {product: name for product, _, name in parts}
    if unknown := found.keys() - {"qk", "pv"}:
        raise typer.BadParameter(f"{min(unknown)!r} is no product of attention; use qk: or pv:")
    return found


def show(evaluation: "Evaluation", console: Console) -> None:
    """The table of an evaluation, and the conditions it was made under."""
    # markup and highlighting off: the name of a model or file is not ours to interpret.
    console.print(_table(evaluation))
    for line in _conditions(evaluation):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(evaluation: "Evaluation") -> Table:
    table = Table("", "value", f"{evaluation.confidence:.0%} interval")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, interval, form in _rows(evaluation):
        ends = f"{interval.low:{form}} to {interval.high:{form}}"
        known = interval.low == interval.low  # nan: nothing could be resampled
        table.add_row(name, f"{interval.value:{form}}", ends if known else "unknown: one window")
    return table


def _rows(evaluation: "Evaluation") -> list[Row]:
    rows: list[tuple[str, Interval | None, str]] = [
        ("perplexity", evaluation.perplexity, ".4f"),
        ("bits per byte", evaluation.bits_per_byte, ".4f"),
    ]
    if comparison := evaluation.comparison:
        rows += [
            ("perplexity of the reference", comparison.perplexity, ".4f"),
            ("bits per byte of the reference", comparison.bits_per_byte, ".4f"),
            ("change of perplexity, %", comparison.perplexity_change_percent, "+.3f"),
            ("mean KL divergence, nats a token", comparison.kl_nats, ".6f"),
            ("same top token, %", comparison.top1_agreement_percent, ".2f"),
        ]
    return [(name, interval, form) for name, interval, form in rows if interval is not None]


def _conditions(evaluation: "Evaluation") -> list[str]:
    settings = evaluation.settings
    split = f", cut at '{evaluation.split_at}'" if evaluation.split_at else ""
    first = f", the first {settings.document_tokens} tokens of each document"
    skipped = f", {evaluation.skipped} of fewer than two skipped" if evaluation.skipped else ""
    reference = f" against {evaluation.reference}" if evaluation.reference else ""
    return [
        f"model: {evaluation.model}{reference}",
        *_rounded(evaluation),
        f"data: {', '.join(evaluation.data)}{split}{first if settings.document_tokens else ''}",
        f"scored: {evaluation.tokens} tokens, {evaluation.bytes:.0f} bytes, {evaluation.documents} "
        f"documents{skipped}, {evaluation.windows} windows",
        f"windows: context {settings.context}, stride {settings.stride}; BOS {evaluation.bos}",
        f"interval: paired bootstrap over {evaluation.unit}s, {settings.resamples} resamples, "
        f"seed {settings.seed}",
    ]


def _rounded(evaluation: "Evaluation") -> list[str]:
    """What is rounded in the attention of the model; nothing where nothing is."""
    formats = evaluation.attention
    said = []
    if formats.kv_cache:
        said.append(f"KV cache {formats.kv_cache} ({evaluation.kv_cache_bits:.4g} bits a number)")
    for product, name in (("QK", formats.qk), ("PV", formats.pv)):
        if name:
            said.append(f"operands of {product} {name}")
    if formats.static:
        said.append(f"static scales from {', '.join(formats.calibrate)}")
    return [f"rounded in the model: {'; '.join(said)}"] if said else []
