import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import DataError
from pennyweight.model import textfiles
from pennyweight.model.textfiles import Document, TokenDocument, cut, read_file


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_plain_text_is_one_document_without_byte_order_mark_or_carriage_returns(tmp_path):
    path = write(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\ntwo\n")
    assert read_file(path) == [Document(name="a.txt", text="one\ntwo\n")]


def test_cut_keeps_lookahead_and_drops_white_space():
    whole = [Document(name="a.txt", text="\n\nOnce one\n\nmore\n\nOnce two\n\n")]
    assert cut(whole, r"\n\n(?=Once)") == [
        Document(name="a.txt#1", text="Once one\n\nmore"),
        Document(name="a.txt#2", text="Once two\n\n"),
    ]


@pytest.mark.parametrize(
    ("pattern", "found"), [("(", "not a regular expression"), ("(a)", "group")]
)
def test_cut_refuses_what_it_cannot_use(pattern, found):
    with pytest.raises(DataError, match=found):
        cut([Document(name="a", text="b")], pattern)


@pytest.mark.parametrize(("pattern", "seconds"), [("(?:x+x+)+y", 0.2), ("(?R)", 30.0)])
def test_cut_gives_up_on_what_takes_ages_or_all_memory(pattern, seconds, monkeypatch):
    monkeypatch.setattr(textfiles, "CUT_SECONDS", seconds)
    with pytest.raises(DataError, match=r"b\.txt#1: .*no end.*use a simpler"):
        cut([Document(name="b.txt#1", text="x" * 9999)], pattern)


def test_cut_gives_all_documents_together_so_many_seconds(monkeypatch):
    """A million documents of a second each are no better than one of a million seconds."""
    monkeypatch.setattr(textfiles, "CUT_SECONDS", 0.3)
    short = Document(name="0", text="x" * 200)
    with pytest.raises(DataError, match=r"no end in 0\.3 s"):
        cut([short] * 1000, "(?:x+x+)+y")
    monkeypatch.undo()
    assert cut([short], "(?:x+x+)+y") == [Document(name="0#1", text=short.text)]


@given(st.text("ab\n .", max_size=60))
def test_cut_cuts_as_the_standard_library_does(text):
    for pattern in (r"\n\n(?=a)", r"\n", r"(?<=\.)\s+", r"(?=ab)", r"b*", r"(?m)^a", r"\ba\b|\Z"):
        pieces = [piece for piece in re.split(pattern, text) if piece.strip()]
        found = cut([Document(name="a", text=text)], pattern)
        assert [document.text for document in found] == pieces, pattern


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"text": "a", "content": "b"}, "a"),
        ({"content": "b"}, "b"),
        ({"id": 3, "story": "c"}, "c"),
        ({"prompt": "q? ", "response": "r"}, "q? r"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "bot", "content": "y"}]},
            "user: x\nbot: y",
        ),
    ],
)
def test_json_lines_find_the_text(tmp_path, record, text):
    path = write(tmp_path, "a.jsonl", "\n" + json.dumps(record) + "\n")
    assert [(d.name, d.text) for d in read_file(path)] == [("a.jsonl#2", text)]


def test_json_lines_keep_empty_texts_so_that_they_are_counted(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": ""}\n{"text": "b"}\n')
    assert [document.text for document in read_file(path)] == ["", "b"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("{", "not JSON"),
        ("[1]", "found list"),
        ('{"words": 1}', "found the keys 'words'"),
        ('{"text": 1}', "'text' is int"),
        ('{"messages": "a"}', "'messages' is str"),
        ('{"messages": [{"role": "user"}]}', r"messages\[0\] has no"),
        ('{"messages": [{"role": "user", "content": []}]}', r"messages\[0\].content is list"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, found):
    path = write(tmp_path, "a.jsonl", '{"text": "good"}\n\n' + line)
    with pytest.raises(DataError, match=r"a\.jsonl:3.*" + found):
        read_file(path)


def test_token_lists(tmp_path):
    path = write(tmp_path, "a.json", "[[1, 5], [7]]")
    assert read_file(path) == [
        TokenDocument(name="a.json#1", ids=(1, 5)),
        TokenDocument(name="a.json#2", ids=(7,)),
    ]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", " \n", "only empty texts"),
        ("a.txt", b"ab\xff", r"byte 2 \(0xff\) is not UTF-8"),
        ("a.jsonl", '{"text": " "}', "only empty texts"),
        ("a.jsonl", "\n\n", "in 0 documents"),
        ("a.csv", "a", "'.csv' are not read"),
        ("a", "a", r"'\(no suffix\)' are not read"),
        ("a.json", "{", "not JSON"),
        ("a.json", "{}", "expected a list of lists"),
        ("a.json", "[]", "expected a list of lists"),
        ("a.json", "[[]]", "only empty lists"),
        ("a.json", "[[1], [2.0]]", "item 1 is not"),
        ("a.json", "[[true]]", "item 0 is not"),
        ("a.json", "[[-1]]", "item 0 is not"),
    ],
)
def test_unusable_files_say_why(tmp_path, name, content, found):
    with pytest.raises(DataError, match=found) as error:
        read_file(write(tmp_path, name, content))
    assert name in str(error.value)
