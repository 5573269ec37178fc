"""The verb `diagnose`: which parts of a quantized model cost what, and what to try next."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pennyweight.core import Progress, RecipeError
from pennyweight.evaluate import Settings
from pennyweight.model.load import has_tokenizer, load_tokenizer
from pennyweight.model.resolve import resolve_model
from pennyweight.model.text import TokenDocument, documents
from pennyweight.model.tokens import check_same_tokenizer
from pennyweight.model.workers import start_workers
from pennyweight.records import Store
from pennyweight.study.diagnosis.examination import Diagnosis, Examination
from pennyweight.study.diagnosis.loss import Losses
from pennyweight.study.diagnosis.pair import AUTO, Pair
from pennyweight.study.planning.budget import Budget, parse_budget
from pennyweight.study.texts import Texts, read_texts
from pennyweight.study.units import GRANULARITIES

TEXT, TARGET = ("stdlib-heldout",), "ppl<=1%"
CHECKED = 4  # documents that both tokenizers must cut alike


def text_settings() -> Settings:
    """The start of each of many documents says more than the whole of a few."""
    return Settings(max_tokens=8192, document_tokens=256)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that decides the numbers of a diagnosis."""

    reference: str
    quantized: str
    target: str = TARGET  # of the loss, as a plan's budget: kl<=0.01 or ppl<=1%
    granularity: str = AUTO
    data: tuple[str, ...] = TEXT
    split_at: str | None = None
    settings: Settings = field(default_factory=text_settings)
    trust_remote_code: bool = False

    def budget(self) -> Budget:
        """Raises RecipeError for a target that is no loss."""
        budget = parse_budget(self.target)
        if budget.name not in ("kl", "ppl"):
            raise RecipeError(f"target {self.target!r:.40}: expected a loss, kl<=0.01 or ppl<=1%")
        return budget


def diagnose(
    request: Request,
    *,
    records: Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Raises CheckpointError for two models that do not belong together, DataError for a text or
    tokenizers that do not, RecipeError for a target or granularity that there is not."""
    budget, progress = request.budget(), progress or Progress()
    if request.granularity not in (AUTO, *GRANULARITIES):
        known = ", ".join((AUTO, *GRANULARITIES))
        raise RecipeError(f"granularity {request.granularity!r:.40}; expected one of {known}")
    store = None if records is None else Store.open(records)
    paths = resolve_model(request.reference), resolve_model(request.quantized)
    _check_tokenizers(paths, request)
    progress.say(f"loading {request.reference} and {request.quantized}")
    with start_workers(threads) as workers, tempfile.TemporaryDirectory() as folder:
        pair = Pair.load(*paths, request.granularity, request.trust_remote_code)
        texts = read_texts(
            paths[0], pair.reference, request.data, split_at=request.split_at,
            settings=request.settings,
        )  # fmt: skip
        subject = _subject(request, pair, texts)
        losses = Losses.open(texts, workers, pair.reference, Path(folder), subject, store)
        return Examination(
            names=(request.reference, request.quantized), budget=budget, pair=pair, losses=losses,
            workers=workers, progress=progress,
        )()  # fmt: skip


def _check_tokenizers(paths: tuple[Path, Path], request: Request) -> None:
    """Some tools leave the tokenizer out; then it is the reference's."""
    found = [d for source in request.data for d in documents(source, split_at=request.split_at)]
    if all(isinstance(each, TokenDocument) for each in found) or not has_tokenizer(paths[1]):
        return
    tokenizers = [load_tokenizer(path, request.trust_remote_code) for path in paths]
    check_same_tokenizer(tokenizers[1], tokenizers[0], found[:CHECKED])


def _subject(request: Request, pair: Pair, texts: Texts) -> dict[str, Any]:
    return {
        "reference": request.reference, "model": request.quantized,
        "reference_fingerprint": pair.fingerprints[0], "fingerprint": pair.fingerprints[1],
        "text": list(texts.data), "data": texts.digest, "settings": asdict(texts.settings),
    }  # fmt: skip
