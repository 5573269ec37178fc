"""FLORES+ from a copy, and what is said where there is none. Its files here are made up."""

import json

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError

from pennyweight.core import DataError
from pennyweight.model.calibration import flores
from pennyweight.model.text import calibration_samples, documents
from tests.byte_tokenizer import byte_tokenizer

SENTENCES = ["Der erste Satz.", "Der zweite, länger.", "这是一句话。"]


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy as the Hub has it: dev/ and devtest/ with a file of JSON lines for each language."""
    monkeypatch.delenv(flores.FOLDER, raising=False)
    for split in ("dev", "devtest"):
        (tmp_path / split).mkdir()
        for language in ("deu_Latn", "cmn_Hans"):
            rows = [
                {"id": number, "iso_639_3": language[:3], "text": f"{split} {sentence}"}
                for number, sentence in enumerate(SENTENCES)
            ]
            lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
            (tmp_path / split / f"{language}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    monkeypatch.delenv(flores.FOLDER, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty cache"))


def text_of(source):
    (found,) = documents(source)
    return found.text


def test_the_sentences_of_a_copy_in_their_order(copy):
    expected = "\n".join(f"dev {sentence}" for sentence in SENTENCES)
    assert text_of(f"flores:deu_Latn@{copy}") == expected
    assert text_of(f"flores:deu_Latn@{copy / 'dev'}") == expected
    assert text_of(f"flores-devtest:cmn_Hans@{copy}").startswith("devtest Der erste")


def test_a_sentence_a_line_is_the_same_text(copy):
    plain = copy / "plain"
    plain.mkdir()
    (plain / "deu_Latn.txt").write_text("".join(f"dev {s}\n" for s in SENTENCES), encoding="utf-8")
    (plain / "LICENSE.txt").write_text("not a language")
    assert text_of(f"flores:deu_Latn@{plain}") == text_of(f"flores:deu_Latn@{copy}")
    assert list(flores.languages(plain)) == ["deu_Latn"]


def test_a_copy_named_by_the_environment(copy, monkeypatch):
    monkeypatch.setenv(flores.FOLDER, str(copy))
    assert text_of("flores:deu_Latn").startswith("dev ")
    assert text_of("flores-devtest:deu_Latn").startswith("devtest ")
    (copy / "devtest").rename(copy / "elsewhere")
    with pytest.raises(DataError, match=r"devtest holds no file as deu_Latn\.jsonl"):
        documents("flores-devtest:deu_Latn")  # and not the text that was calibrated on


def test_it_is_calibrated_on_like_any_text(copy):
    found = calibration_samples(
        [f"flores:deu_Latn@{copy}*0.5+flores:cmn_Hans@{copy}*0.5"], byte_tokenizer(),
        samples=4, tokens=16, seed=0,
    )  # fmt: skip
    assert found.ids.shape == (4, 16)


@pytest.mark.parametrize(
    ("language", "message"),
    [("deu_Latm", "did you mean 'deu_Latn'"), ("", "it has cmn_Hans, deu_Latn"),
     ("../dev/deu_Latn", "no language '../dev/deu_Latn'")],
)  # fmt: skip
def test_a_language_that_a_copy_has_not(copy, language, message):
    with pytest.raises(DataError, match=message):
        documents(f"flores:{language}@{copy}")


def test_without_a_network_it_says_what_to_do(no_network):
    expected = (
        r"^flores:deu_Latn: the Hub did not give dev/deu_Latn.jsonl of openlanguagedata/flores_plus"
        r" \(.+\); try again with a network .*flores:deu_Latn@FOLDER, or .* FLORES_PLUS$"
    )
    with pytest.raises(DataError, match=expected):
        documents("flores:deu_Latn")
    with pytest.raises(DataError, match="names no language"):
        documents("flores:")


def test_what_the_hub_asks_for_first_is_said(monkeypatch):
    asked = []

    def gated(repository, name, *, repo_type):
        asked.append((repository, name, repo_type))
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.delenv(flores.FOLDER, raising=False)
    monkeypatch.setattr(flores, "hf_hub_download", gated)
    with pytest.raises(DataError, match=r"accepted its conditions.*hf auth login.*@FOLDER"):
        documents("flores-devtest:deu_Latn")
    assert asked == [("openlanguagedata/flores_plus", "devtest/deu_Latn.jsonl", "dataset")]
