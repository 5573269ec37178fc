import pytest
import torch

from pennyweight.core import DataError, UnknownNameError
from pennyweight.model import text
from pennyweight.model.text import calibration_samples, documents
from tests.byte_tokenizer import BOS, byte_tokenizer

TOKENIZER = byte_tokenizer()


def sample(*sources, samples=2, tokens=8, seed=0):
    sources = [str(source) for source in sources]
    return calibration_samples(sources, TOKENIZER, samples=samples, tokens=tokens, seed=seed)


@pytest.fixture
def stories(tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(f'{{"text": "story {i:03}"}}\n' for i in range(50)))
    return path


def test_named_sources_are_disjoint():
    train, heldout = documents("stdlib"), documents("stdlib-heldout")
    assert train[0].name.startswith("stdlib:")
    names = [{document.name.split(":")[1] for document in each} for each in (train, heldout)]
    assert names[0] and names[1] and not names[0] & names[1]


def test_unknown_names_suggest_the_nearest(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'stdlib-heldout'"):
        documents("stdlib_heldout")
    with pytest.raises(UnknownNameError, match=r"known: .*stdlib, stdlib-heldout"):
        documents("c4")
    with pytest.raises(DataError, match="no such file"):
        documents(str(tmp_path / "missing.txt"))
    with pytest.raises(DataError, match="is a folder"):
        documents(str(tmp_path))


def test_token_ids_cannot_be_split(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[[1, 2]]")
    with pytest.raises(DataError, match="split_at cannot cut"):
        documents(str(path), split_at="x")


def test_rows_are_shuffled_documents_with_their_bos_joined(stories):
    calibration = sample(stories, samples=3, tokens=20)
    assert calibration.ids.shape == (3, 20)
    # Ten characters a story and a BOS before it: rows of 20 are cut wherever they end.
    assert (calibration.ids.flatten() == BOS).nonzero().flatten().tolist() == list(range(0, 60, 10))
    assert TOKENIZER.decode(calibration.ids[0, :10]) != "<s>story 000"
    assert calibration.note == ""
    assert calibration.description["bos"] == "auto: the tokenizer adds '<s>'"
    assert calibration.description["samples"] == 3


def test_the_same_seed_gives_the_same_digest_and_other_data_another(stories, tmp_path):
    (other := tmp_path / "other.txt").write_text("A quite different text. " * 20)
    first, again = sample(stories), sample(stories)
    assert torch.equal(first.ids, again.ids)
    assert first.digest == again.digest
    different = [sample(stories, seed=1), sample(other), sample(stories, samples=4, tokens=4)]
    assert len({first.digest, *(each.digest for each in different)}) == 4


def test_only_as_many_passages_are_tokenized_as_needed(tmp_path, monkeypatch):
    path = tmp_path / "long.txt"
    path.write_text("some words on a line\n" * 10_000)
    seen = []
    monkeypatch.setattr(
        text, "tokenize", lambda passage, *rest: seen.append(passage) or real(passage, *rest)
    )
    assert sample(path, samples=4, tokens=64).ids.shape == (4, 64)
    assert sum(len(passage.text) for passage in seen) < 1000
    assert all(passage.text.endswith("\n") for passage in seen)


real = text.tokenize


def test_passages_lose_nothing(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("line\n" * 7 + "x" * 500 + "\n\nend")
    passages = list(text._passages(documents(str(path)), 20))
    assert "".join(passage.text for passage in passages) == path.read_text()
    assert max(len(passage.text) for passage in passages) <= 41


def test_less_text_than_asked_for_gives_fewer_rows_and_says_so(tmp_path):
    (path := tmp_path / "a.txt").write_text("twenty-one letters. a")
    calibration = sample(path, samples=9, tokens=10)
    assert calibration.ids.shape == (2, 10)
    assert calibration.note == "asked for 9 x 10 tokens, the text has 22: 2 x 10 used"
    assert sample(path, samples=1, tokens=100).ids.shape == (1, 22)


def test_pretokenized_text_is_taken_as_it_is(tmp_path):
    (path := tmp_path / "a.json").write_text("[[1, 2, 3, 4], [1, 2, 3, 4]]")
    assert sample(path, samples=2, tokens=4).ids.tolist() == [[1, 2, 3, 4]] * 2


def test_one_token_is_not_enough(tmp_path):
    (path := tmp_path / "a.json").write_text("[[1]]")
    with pytest.raises(DataError, match="found 1 tokens"):
        sample(path)
    with pytest.raises(DataError, match="samples=0"):
        sample(path, samples=0)
