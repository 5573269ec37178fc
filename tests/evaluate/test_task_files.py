import gzip
import json

import pytest

from pennyweight.core import DataError
from pennyweight.evaluate.task_files import LAYOUTS, is_task_file, read_task_file

CHOICE = {"query": "Question: 1 + 1?", "choices": ["2", "3"], "gold": 0}
PAIR = {"sentence_good": "It is.", "sentence_bad": "It are."}


@pytest.fixture
def save(tmp_path):
    def saved(*rows, name="toy.jsonl"):
        path = tmp_path / name
        text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return saved


@pytest.mark.parametrize(
    ("layout", "row"),
    [
        ("choices", CHOICE),
        ("contexts", {"context_options": ["a", "b"], "continuation": "c", "gold": 1}),
        ("minimal_pair", PAIR | {"UID": "x", "pairID": "0"}),
        ("answer", {"question": "How many?", "answer": "#### 3"}),
        ("continuation", {"context": "it was a dark", "continuation": "night"}),
        (
            "code",
            {"task_id": "x", "prompt": "def f():", "entry_point": "f", "test": "def check(c):"},
        ),
    ],
)
def test_layouts_are_told_by_their_keys(save, layout, row):
    found = read_task_file(save(row, "", row))
    assert (found.name, found.layout, len(found.items)) == ("toy", layout, 2)
    assert found.items[0] == {key: row[key] for key in LAYOUTS[layout]}


def test_a_compressed_file_is_the_same_task(save):
    plain, packed = read_task_file(save(PAIR)), read_task_file(save(PAIR, name="toy.jsonl.gz"))
    assert (packed.name, packed.items, packed.digest) == (plain.name, plain.items, plain.digest)
    assert read_task_file(save(PAIR, PAIR)).digest != plain.digest


def test_a_name_that_says_nothing_gets_its_folder_s(save, tmp_path):
    (tmp_path / "gsm8k").mkdir()
    assert read_task_file(save(PAIR, name="gsm8k/test.jsonl")).name == "gsm8k_test"


@pytest.mark.parametrize(
    ("name", "file"), [("piqa", False), ("a/b.jsonl", True), ("x.jsonl.gz", True)]
)
def test_a_file_is_told_by_its_suffix(name, file):
    assert is_task_file(name) is file


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([CHOICE, {**CHOICE, "gold": None}], "toy.jsonl:2: no gold label"),
        ([{k: v for k, v in CHOICE.items() if k != "gold"}], "toy.jsonl:1: no gold label"),
        ([{**CHOICE, "gold": 2}], "'gold' is 2; expected a number from 0 to 1, for 2 choices"),
        ([{**CHOICE, "gold": True}], "'gold' is True"),
        ([{**CHOICE, "gold": "0"}], "'gold' is '0'"),
        ([CHOICE, PAIR], "toy.jsonl:2: has the keys of 'minimal_pair' .* began as 'choices'"),
        ([{"query": "what?"}], r"toy.jsonl:1: found the keys 'query'; expected one of these sets"),
        ([{**CHOICE, "choices": ["only one"]}], "'choices' is .* a list of at least two strings"),
        ([{**CHOICE, "choices": ["a", 3]}], r"'choices'\[1\] is int; expected a string"),
        ([{**PAIR, "sentence_bad": " "}], "toy.jsonl:1: 'sentence_bad' is empty"),
        (["[1]"], "toy.jsonl:1: found list; expected an object"),
        ([PAIR, "{'a'"], "toy.jsonl:2: not JSON"),
        (["", " "], "holds no question"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(save, rows, message):
    with pytest.raises(DataError, match=message):
        read_task_file(save(*rows))


def test_files_that_cannot_be_read(save, tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        read_task_file(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"\x1f\x8bnot gzip")
    with pytest.raises(DataError, match="cannot be read"):
        read_task_file(tmp_path / "bad.jsonl.gz")


def test_every_shared_task_can_be_read(shared_data):
    folders = ("tasks", "blimp", "gsm8k", "humaneval")
    files = [p for folder in folders for p in (shared_data / folder).glob("*.jsonl*")]
    found = {path.name: read_task_file(path) for path in files}
    assert {each.layout for each in found.values()} == set(LAYOUTS)
    assert len(found["arc_easy.jsonl"].items) == 2376
