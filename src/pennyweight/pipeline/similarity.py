"""Let a model and its reference answer the same prompts greedily, and compare what they write."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pennyweight.core import Progress
from pennyweight.core.errors import DataError
from pennyweight.core.record import Record, record_key
from pennyweight.evaluate.answers import continue_greedily, leading_bos
from pennyweight.evaluate.encoder import load_encoder
from pennyweight.evaluate.evaluation import plain
from pennyweight.evaluate.intervals import Interval
from pennyweight.evaluate.similarity import Answer, Similarity, similarity
from pennyweight.model.attention import AttentionFormats
from pennyweight.model.load import load_tokenizer
from pennyweight.model.text import Document, documents
from pennyweight.model.tokens import BosRule, Tokenizer, check_same_tokenizer, describe_bos
from pennyweight.model.writer import write_text
from pennyweight.pipeline.engine import Engine, Keeping, Run, describe_chat, fingerprint
from pennyweight.pipeline.evidence import WHOLE, kept_whole, known
from pennyweight.records import Clock, Store, provenance

STUDY = "eval similarity"
DEFAULT_PROMPTS = "stdlib-heldout"
OPENING_TOKENS = 64  # of a document that is no prompt
PROMPTS = 64  # taken unless a limit is given
PROMPT_KEYS = ("prompt", "instruction", "question", "query", "text")


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """What is asked and how."""

    prompts: str = DEFAULT_PROMPTS  # or a file: lines of .txt, or .jsonl
    limit: int = PROMPTS  # prompts
    new_tokens: int = 64
    bos: BosRule = "auto"
    chat_template: bool = False
    encoder: str | None = None  # of sentence-transformers, for BERTScore and STS
    seed: int = 0  # of the bootstrap


@dataclass(frozen=True, kw_only=True)
class SimilarityReport:
    """What was compared, and how alike it is."""

    model: str
    reference: str
    found: Similarity
    settings: AnswerSettings
    prompts_digest: str
    cut: int  # prompts whose beginning did not fit
    bos: str
    chat_template: str

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; numbers that are not known are null."""
        return {key: plain(value) for key, value in asdict(self).items()}


def compare_answers(
    run: Run,
    against: str | Path,
    *,
    settings: AnswerSettings | None = None,
    keeping: Keeping | None = None,
    progress: Progress | None = None,
) -> SimilarityReport:
    """Greedy answers of both to the same prompts; attention is rounded in the model only.

    Raises DataError, UnsupportedError, and what loading a model raises.
    """
    settings, progress, clock = settings or AnswerSettings(), progress or Progress(), Clock()
    keeping = keeping or Keeping()
    store = None if keeping.records is None else Store.open(keeping.records)
    encoder = None if settings.encoder is None else load_encoder(settings.encoder)
    tokenizer = load_tokenizer(run.model)
    chat = describe_chat(tokenizer, settings.chat_template)
    prompts = _prompts(settings, tokenizer)
    check_same_tokenizer(tokenizer, load_tokenizer(against), prompts)
    asked = [_ids(prompt.text, tokenizer, settings) for prompt in prompts]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    identity = _identity(run, against, settings, digest)
    if store is not None and keeping.samples is None:
        kept = kept_whole(store, STUDY, identity, SimilarityReport)
        if kept is not None:
            progress.say(f"resumed: all numbers are from {store.path}")
            return replace(kept, model=str(run.model), reference=str(against))
    answers, cut = {}, 0
    for role, each in (("reference", Run(model=against)), ("model", run)):
        engine = Engine.load(each)
        answers[role], cut = _answers(engine, asked, settings)
        progress.say(f"{each.model}: {len(asked)} answers, {clock.elapsed_s:.0f} s")
        del engine
        gc.collect()  # the next model needs the memory
    found = similarity(answers["model"], answers["reference"], encoder=encoder, seed=settings.seed)
    report = SimilarityReport(
        model=str(run.model), reference=str(against), found=found, settings=settings,
        prompts_digest=digest, cut=cut,
        bos=describe_bos(tokenizer, settings.bos), chat_template=chat,
    )  # fmt: skip
    if keeping.samples is not None:
        _write_samples(keeping.samples, prompts, answers, found)
    if store is not None:
        store.add(_records(report, identity, clock))
    return report


def _prompts(settings: AnswerSettings, tokenizer: Tokenizer) -> list[Document]:
    if settings.limit < 1 or settings.new_tokens < 1:
        raise DataError(
            f"limit is {settings.limit} and new_tokens {settings.new_tokens}; expected at least 1"
        )
    path = Path(settings.prompts)
    if path.suffix in (".jsonl", ".txt"):
        return read_prompts(path)[: settings.limit]
    found = [d for d in documents(settings.prompts)[: settings.limit] if isinstance(d, Document)]
    if not found:
        raise DataError(f"{settings.prompts}: holds token ids; prompts are texts")
    return [Document(name=d.name, text=_opening(d.text, tokenizer)) for d in found]


def read_prompts(path: Path) -> list[Document]:
    """A prompt a line: of text, or JSON with one of PROMPT_KEYS. Raises DataError naming it."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    found = [
        Document(name=f"{path.name}#{number}", text=_prompt(line, f"{path}:{number}", path.suffix))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not found:
        raise DataError(f"{path}: holds no prompt; expected one a line")
    return found


def _prompt(line: str, where: str, suffix: str) -> str:
    if suffix == ".txt":
        return line
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    key = next((key for key in PROMPT_KEYS if isinstance(row, dict) and key in row), None)
    if key is None or not isinstance(row[key], str) or not row[key].strip():
        raise DataError(
            f"{where}: no prompt; expected a text under one of {', '.join(map(repr, PROMPT_KEYS))}"
        )
    return row[key]


def _opening(text: str, tokenizer: Tokenizer) -> str:
    """The first OPENING_TOKENS tokens of a document, for a model to continue."""
    # 64 tokens are never more characters than this, and tokenizing a book takes seconds.
    ids = tokenizer(text[:4096], add_special_tokens=False, verbose=False)["input_ids"]
    return str(tokenizer.decode(ids[:OPENING_TOKENS]))


def _ids(text: str, tokenizer: Tokenizer, settings: AnswerSettings) -> list[int]:
    if settings.chat_template:
        turns = [{"role": "user", "content": text}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    bos = leading_bos(tokenizer, settings.bos)
    ids = ids if bos is None or ids[:1] == [bos] else [bos, *ids]
    if not ids:
        raise DataError("a prompt has no token to begin with; use --bos always, or another prompt")
    return ids


def _answers(
    engine: Engine, asked: Sequence[Sequence[int]], settings: AnswerSettings
) -> tuple[list[Answer], int]:
    room = engine.limit - settings.new_tokens
    if room < 1:
        raise DataError(
            f"{settings.new_tokens} new tokens, but the model takes {engine.limit} with the "
            "prompt; ask for fewer (--new-tokens)"
        )
    found = []
    for ids in asked:
        made = continue_greedily(
            engine.model, ids[-room:], new_tokens=settings.new_tokens, stops=engine.stops
        )
        text = str(engine.tokenizer.decode(made, skip_special_tokens=True))
        found.append(Answer(ids=tuple(made), text=text))
    return found, sum(len(ids) > room for ids in asked)


def _write_samples(
    path: Path, prompts: Sequence[Document], answers: dict[str, list[Answer]], found: Similarity
) -> None:
    rows = [
        {
            "prompt": prompt.text, "name": prompt.name, "model": model.text,
            "reference": reference.text, "first_divergence": place,
        }
        for prompt, model, reference, place in zip(
            prompts, answers["model"], answers["reference"], found.first_divergence, strict=True
        )
    ]  # fmt: skip
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def _identity(
    run: Run, against: str | Path, settings: AnswerSettings, digest: str
) -> dict[str, Any]:
    """Everything that the answers depend on; prompts by what they hold."""
    return json.loads(json.dumps(asdict(settings))) | {
        "fingerprint": fingerprint(run.model),
        "reference": fingerprint(against),
        "questions": digest,
        "attention": json.loads(json.dumps(asdict(run.attention or AttentionFormats()))),
    }


def _records(report: SimilarityReport, identity: dict[str, Any], clock: Clock) -> list[Record]:
    """One for each number; that of ROUGE-1 holds them all."""
    found = report.found
    values = {name: value for name, value in vars(found).items() if isinstance(value, Interval)}
    values |= found.encoded
    for role in ("model", "reference"):
        values |= {f"{role}_{name}": each for name, each in vars(getattr(found, role)).items()}
    return [
        Record(
            study=STUDY,
            key=record_key(identity),
            subject=identity | {"model": report.model, "against": report.reference},
            metric=name,
            value=interval.value,
            lower=known(interval.low),
            upper=known(interval.high),
            confidence=found.confidence,
            data=report.prompts_digest,
            seed=found.seed,
            detail={WHOLE: report.to_dict()} if name == "rouge1_percent" else {},
            **provenance(clock),
        )
        for name, interval in values.items()
        if interval.value == interval.value
    ]
