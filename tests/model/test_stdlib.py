"""The three splits of the standard library do not overlap, and the held-out one stays unseen."""

import sysconfig

import pytest

from pennyweight.core.errors import DataError
from pennyweight.model.stdlib import HELDOUT, split_of, stdlib_documents


@pytest.fixture(scope="module")
def splits() -> dict[str, list[tuple[str, str]]]:
    return {split: stdlib_documents(split) for split in ("train", "heldout", "extra")}


def test_splits_share_no_module(splits):
    names = [name for documents in splits.values() for name, _ in documents]
    assert len(names) == len(set(names))


def test_documents_are_sorted_and_not_empty(splits):
    for documents in splits.values():
        assert documents == sorted(documents)
        assert all(text for _, text in documents)


def test_every_heldout_module_exists(splits):
    assert {name.split(".")[0] for name, _ in splits["heldout"]} == HELDOUT


def test_sizes_are_what_the_splits_are_for(splits):
    size_bytes = {s: sum(len(text.encode()) for _, text in d) for s, d in splits.items()}
    assert 400_000 < size_bytes["heldout"] < 900_000
    assert size_bytes["train"] > 5_000_000


def test_train_has_no_tests_and_nothing_optional(splits):
    for name, _ in splits["train"]:
        assert not {"test", "tests", "tkinter", "idlelib", "lib2to3"}.intersection(name.split("."))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("argparse", "heldout"),
        ("json.decoder", "heldout"),
        ("email.mime.base", "train"),
        ("test.test_email.test_email", None),
        ("tkinter.ttk", "extra"),
        ("unittest.test.test_case", None),
        ("test.test_argparse", None),
        ("test.test_json.test_scanner", None),
        ("encodings.cp1252", None),
        ("_sysconfigdata__linux_x86_64-linux-gnu", None),
    ],
)
def test_split_of_a_module(name, split):
    assert split_of(name) == split


def test_missing_source_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match="standard library"):
        stdlib_documents("train")
