"""A measurement that a store holds is read and not made again."""

import json
import shutil

import pytest

from pennyweight.evaluate import Settings
from pennyweight.model.attention import AttentionFormats
from pennyweight.pipeline import evaluate as evaluate_module
from pennyweight.pipeline import similarity as similarity_module
from pennyweight.pipeline.engine import Keeping, Run
from pennyweight.pipeline.evaluate import prepare
from pennyweight.pipeline.evidence import measured
from pennyweight.pipeline.similarity import AnswerSettings, compare_answers
from pennyweight.records import Clock, Store
from tests.tiny_llama import save_tiny_llama


class Again(Exception):
    """Something was computed that was known."""


def again(*args, **kwargs):
    raise Again


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "long.txt").write_text("a text of some length " * 30)
    (folder / "short.txt").write_text("a short one")
    (folder / "prompts.txt").write_text("one\ntwo\n")
    save_tiny_llama(folder / "model", noise=0.05)
    save_tiny_llama(folder / "reference")
    return folder


@pytest.mark.parametrize("text", ["long", "short"])  # one window has no interval: its ends are NaN
def test_texts(models, tmp_path, monkeypatch, text):
    def measure(model=models / "model", attention=None, **settings):
        made = prepare(
            model, against=models / "reference", data=[str(models / f"{text}.txt")],
            settings=Settings(resamples=100, **settings), attention=attention,
        )  # fmt: skip
        return measured(made, tmp_path / "r.sqlite", Clock())

    first, resumed = measure()
    assert not resumed
    monkeypatch.setattr(evaluate_module, "evaluate_tokens", again)
    found, resumed = measure()
    assert resumed and found.to_dict() == first.to_dict()
    moved = shutil.copytree(models / "model", tmp_path / "moved")
    assert measure(moved)[0].to_dict() == first.to_dict() | {"model": str(moved)}
    for other in ({"seed": 1}, {"context": 32}, {"attention": AttentionFormats(kv_cache="int8")}):
        with pytest.raises(Again):
            measure(**other)  # type: ignore[arg-type]


def test_answers(models, tmp_path, monkeypatch):
    def compare(**settings):
        asked = {"prompts": str(models / "prompts.txt"), "new_tokens": 6} | settings
        return compare_answers(
            Run(model=models / "model"), models / "reference", settings=AnswerSettings(**asked),
            keeping=Keeping(records=tmp_path / "r.sqlite", samples=samples),
        )  # fmt: skip

    samples = None
    first = compare()
    monkeypatch.setattr(similarity_module, "continue_greedily", again)
    assert compare().to_dict() == first.to_dict()
    assert compare().found.first_divergence == first.found.first_divergence
    with pytest.raises(Again):
        compare(new_tokens=5)
    samples = tmp_path / "s.jsonl"  # texts are not in the store
    with pytest.raises(Again):
        compare()


def test_the_whole_is_kept_once_and_is_json(models, tmp_path):
    store = Store.open(tmp_path / "r.sqlite")
    made = prepare(models / "model", data=[str(models / "short.txt")])
    measured(made, store.path, Clock())
    whole = [r.detail["whole"] for r in store.find() if "whole" in r.detail]
    assert len(whole) == 1 and whole[0]["perplexity"]["low"] is None
    json.dumps([r.detail for r in store.find()], allow_nan=False)
