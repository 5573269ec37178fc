"""Where calibration text comes from, how sources are mixed, and what is said of odd ones."""

import json
import re
import string
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import DataError, UnknownNameError
from pennyweight.model.calibration import CALIBRATIONS, Request
from pennyweight.model.calibration.lint import Used, lint
from pennyweight.model.calibration.mix import apportion, parse_mix
from pennyweight.model.load import load_model, load_tokenizer
from pennyweight.model.resolve import resolve_model
from pennyweight.model.text import documents, draw
from pennyweight.model.textfiles import Document, TokenDocument, read_file
from pennyweight.model.workers import start_workers
from tests.byte_tokenizer import BOS, byte_tokenizer

TOKENIZER = byte_tokenizer()
REQUEST = Request(tokenizer=TOKENIZER, samples=4, tokens=16, seed=0, vocabulary=300)
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def drawn(*sources, **changes):
    return draw([str(source) for source in sources], replace(REQUEST, **changes))


@pytest.mark.parametrize("source", ["random-ascii", "random-tokens"])
def test_made_up_text_depends_on_the_seed_alone(source):
    first, again, other = drawn(source), drawn(source), drawn(source, seed=1)
    assert first.ids.shape == (4, 16) and first.digest == again.digest != other.digest
    torch.set_num_threads(2)
    try:
        assert drawn(source).digest == first.digest
    finally:
        torch.set_num_threads(1)
    # More samples are further ones: those there were keep their ids.
    texts = {str(d) for d in documents(source, request=REQUEST)}
    assert texts < {str(d) for d in documents(source, request=replace(REQUEST, samples=9))}


def test_random_ascii_is_uniform_over_its_alphabet():
    found = documents("random-ascii", request=replace(REQUEST, samples=50, tokens=200))
    text = "".join(document.text for document in found)
    alphabet = string.punctuation + string.whitespace
    counts = torch.tensor([text.count(c) for c in alphabet]).double()
    assert counts.sum() == len(text) == 50 * 200 * 4
    expected = len(text) / len(alphabet)
    # Pearson's chi squared with 37 degrees of freedom: mean 37, standard deviation 8.6.
    assert ((counts - expected) ** 2 / expected).sum() < 37 + 4 * 8.6


def test_random_tokens_begin_as_texts_do_and_hold_nothing_special():
    ids = drawn("random-tokens", samples=64, tokens=32).ids
    assert (ids[:, 0] == BOS).all() and not (ids[:, 1:] == BOS).any()
    assert int(ids.max()) <= BOS and len(ids[:, 1:].unique()) > 240  # of 256
    assert int(drawn("random-tokens", tokenizer=None, vocabulary=7).ids.max()) == 6
    with pytest.raises(DataError, match="needs a model or a tokenizer"):
        drawn("random-tokens", tokenizer=None, vocabulary=None)


def test_the_model_writes_its_own_text_the_same_on_any_number_of_threads(monkeypatch):
    request = Request(
        tokenizer=load_tokenizer("pylm"), samples=9, tokens=12, vocabulary=1024,
        model=resolve_model("pylm"),
    )  # fmt: skip
    first = draw(["self"], request)
    module = "pennyweight.model.calibration.generated.start_workers"
    for threads in (1, 3):
        monkeypatch.setattr(module, lambda threads=threads: start_workers(threads))
        assert draw(["self"], request).digest == first.digest
    assert first.ids.shape == (9, 12)
    # Likelier under the model than random ids are: it was sampled and not made up.
    model = load_model("pylm")
    random = draw(["random-tokens"], request).ids

    def loss(ids):
        logits = model(input_ids=ids).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    with torch.inference_mode():
        assert loss(first.ids) < loss(random) - 2


def test_self_needs_a_model():
    with pytest.raises(DataError, match="there is no model"):
        drawn("self")


@pytest.mark.parametrize("name", ["self", "stdlib", "random-ascii", "random-tokens"])
def test_what_takes_no_argument_says_so(name):
    with pytest.raises(DataError, match="takes no argument"):
        drawn(f"{name}:x")


def test_languages(tmp_path):
    for name in ("ref.deu", "ref.zho-CN", "src.eng"):
        (tmp_path / f"newstest2019-{name}.txt").write_text(f"Satz {name}\n" * 20)
    found = documents(f"ntrex:zho-CN@{tmp_path}")
    assert isinstance(found[0], Document) and found[0].text.startswith("Satz ref.zho-CN")
    assert drawn(f"ntrex:eng@{tmp_path}").ids.shape == (4, 16)
    with pytest.raises(DataError, match=r"no language 'due'.* did you mean 'deu'"):
        documents(f"ntrex:due@{tmp_path}")
    with pytest.raises(DataError, match="it has deu, eng, zho-CN"):
        documents(f"ntrex:@{tmp_path}")
    with pytest.raises(DataError, match="holds no file newstest2019"):
        documents("ntrex:deu@/nowhere")


def test_questions_of_tasks_are_read_with_their_right_answer(tmp_path):
    lines = [
        {"query": "Q: why?", "choices": ["no", "because"], "gold": 1},
        {"context_options": ["Ann", "Bob"], "continuation": "left.", "gold": 0},
        {"context": "One two", "continuation": " three"},
    ]
    (path := tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [d.text for d in read_file(path)] == ["Q: why? because", "Ann left.", "One two three"]
    path.write_text(json.dumps(lines[0] | {"gold": 2}))
    with pytest.raises(DataError, match=r"t.jsonl:1: 'gold' is 2; expected .* of 2 choices"):
        read_file(path)


def test_the_shipped_tasks_can_be_calibrated_on(shared_data):
    for file in ("arc_challenge", "winogrande"):
        assert drawn(shared_data / "tasks" / f"{file}.jsonl").ids.shape == (4, 16)
    assert drawn(f"ntrex:deu@{shared_data / 'ntrex'}").note == ""


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("stdlib", None),
        ("a.txt*3+stdlib*1", {"a.txt": 0.75, "stdlib": 0.25}),
        ("ntrex:deu@x*0.5 + self * 0.5", {"ntrex:deu@x": 0.5, "self": 0.5}),
        ("a+b.txt", None),
    ],
)
def test_mixes_are_told_from_names(text, shares):
    assert parse_mix(text) == shares


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a*1+b", "'b' has no weight"), ("a*x", "expected a number above 0"),
        ("a*0+b*1", "expected a number above 0"), ("a*nan", "expected a number"),
        ("a*1+a*2", "named twice"), ("*1", "has no weight"),
    ],
)  # fmt: skip
def test_wrong_mixes(text, message):
    with pytest.raises(DataError, match=message):
        parse_mix(text)


def test_a_file_whose_name_looks_like_a_mix_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a*2.txt").write_text("x" * 200)
    assert parse_mix("a*2.txt") is None
    assert drawn("a*2.txt").ids.shape == (4, 16)


@given(st.integers(5, 300), st.lists(st.floats(1, 4), min_size=1, max_size=5))
def test_shares_of_samples_add_up_and_are_fair(samples, weights):
    shares = {str(i): w / sum(weights) for i, w in enumerate(weights)}
    try:
        counts = apportion(samples, shares, "mix")
    except DataError:
        assert min(shares.values()) * samples < 1
        return
    assert sum(counts.values()) == samples
    assert all(abs(counts[s] - samples * share) < 1 for s, share in shares.items())


def test_a_mix_gives_whole_rows_of_each_source(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text((name * 30 + "\n") * 40)
    mix = f"{tmp_path}/a.txt*0.75+{tmp_path}/b.txt*0.25"
    found = drawn(mix, samples=8)
    letters = [set(TOKENIZER.decode(row).replace("<s>", "").strip()) - {"\n"} for row in found.ids]
    assert letters.count({"a"}) == 6 and letters.count({"b"}) == 2
    assert letters[:6] != [{"a"}] * 6  # shuffled
    assert found.packing.startswith("each source of the mix") and found.sources == (mix,)
    assert drawn(mix, samples=8).digest == found.digest != drawn(mix, samples=8, seed=1).digest
    with pytest.raises(DataError, match="would give none"):
        drawn(mix, samples=1)
    with pytest.raises(DataError, match="a mix is the whole calibration set"):
        drawn(mix, "stdlib")
    with pytest.raises(DataError, match="does not fill a sample"):
        drawn(mix, tokens=5000)


def test_a_chat_template_makes_turns(tmp_path):
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}
    lines = [{"prompt": "why", "response": "so"}, chat, {"text": "plain"}]
    (path := tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    found = drawn(path, tokenizer=tokenizer, samples=1, tokens=500, chat_template=True)
    text = tokenizer.decode(found.ids[0])
    for turn in ("<user>why<assistant>so", "<user>hi<assistant>yo", "<user>plain"):
        assert turn in text
    assert found.bos == "as in the chat template" and "chat template" in found.packing
    with pytest.raises(DataError, match="the tokenizer has none"):
        drawn(path, chat_template=True)
    with pytest.raises(DataError, match="holds token ids"):
        drawn("random-tokens", tokenizer=tokenizer, chat_template=True)
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(DataError, match="refuses it: no such role"):
        drawn(path, tokenizer=tokenizer, chat_template=True)


def test_what_is_made_up_cannot_be_evaluated_on():
    with pytest.raises(DataError, match="name a text to measure on"):
        documents("random-ascii")


def test_a_misspelt_source_is_told_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'random-ascii'"):
        documents("random-asci")


def test_every_source_says_what_it_is():
    assert {"stdlib", "ntrex", "random-ascii", "random-tokens", "self"} <= set(CALIBRATIONS)
    for entry in CALIBRATIONS.values():
        assert entry.about and entry.source and isinstance(entry.generated, bool)


def used(*texts, tokenizer=TOKENIZER, ids=None):
    """A set of these texts; a list is a document of token ids."""
    passages = [
        Document(name="d", text=t) if isinstance(t, str) else TokenDocument(name="d", ids=tuple(t))
        for t in texts
    ]
    tokens = [torch.tensor(tokenizer(t)["input_ids"] if isinstance(t, str) else t) for t in texts]
    flat = torch.cat(tokens)[None] if ids is None else torch.tensor([ids])
    return Used(passages=passages, tokens=tokens, ids=flat)


def plain(**special):
    tokenizer = byte_tokenizer(adds_bos=special.pop("adds_bos", True))
    tokenizer.add_special_tokens(special)
    return tokenizer


PAD, UNK = plain(pad_token="<pad>"), plain(unk_token="<unk>")


@pytest.mark.parametrize(
    ("found", "tokenizer", "message"),
    [
        (used("one text", "another"), TOKENIZER, None),
        (used("same", "same ", "other"), TOKENIZER, "1 of 3 passages repeat another one"),
        (used("a text", [1, 2, 3]), TOKENIZER, "1 of 2 passages do not begin with '<s>', which"),
        (used([BOS, BOS, 3]), TOKENIZER, "1 of 1 passages begin with '<s>' twice"),
        (used([BOS, 3], [4]), plain(adds_bos=False), "1 of 2 passages begin with '<s>', which"),
        (used("see <s> here", "b"), TOKENIZER, r"1 of 2 passages spell out a special token \('<s>"),
        (used([BOS, 1, 2, 257]), PAD, "25.00% of the tokens are padding"),
        (used([BOS, 1, 2, 257]), UNK, "25.0% of the tokens are '<unk>'"),
        (used("a" * 90, [BOS] + [64] * 400), TOKENIZER, "only 2 different tokens in 492"),
    ],
)
def test_lint(found, tokenizer, message):
    lines = lint(found, tokenizer)
    if message is None:
        assert lines == ()
    else:
        (line,) = lines
        assert re.match(message, line), line


def test_runs_of_the_token_that_ends_texts_are_padding():
    tokenizer = plain(eos_token="</s>")
    tokenizer.pad_token = "</s>"
    assert lint(used([BOS, 5, 257, BOS, 6, 257]), tokenizer) == ()
    (line,) = lint(used([BOS, 5, 257, 257, 257, 6]), tokenizer)
    assert line.startswith("33.33% of the tokens are padding")


def test_what_is_odd_is_part_of_the_description(tmp_path):
    (path := tmp_path / "a.json").write_text("[[1, 2, 3, 4], [1, 2, 3, 4]]")
    found = drawn(path, samples=2, tokens=4)
    assert len(found.warnings) == 2 and found.description["warnings"] == list(found.warnings)
