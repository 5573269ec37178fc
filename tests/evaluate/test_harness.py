import json
import math

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from pennyweight.core import DataError, NumericalError, UnknownNameError, UnsupportedError
from pennyweight.evaluate.answers import continue_greedily, likelihood
from pennyweight.evaluate.harness import Asking, FileTask, OneSampleModel, run_task
from pennyweight.evaluate.layouts import task_config
from pennyweight.evaluate.sandbox import run_program
from pennyweight.evaluate.task_files import read_task_file
from pennyweight.model.load import load_model, load_tokenizer

CHOICES = [
    {"query": "Question: the opposite of up?", "choices": ["down", "a left turn", "3"], "gold": 0},
    {"query": "two and two is", "choices": ["four", "five"], "gold": 0},
    {"query": "def f(x):", "choices": ["return x", "zzzz q"], "gold": 0},
]


@pytest.fixture(scope="module")
def pylm():
    return load_model("pylm"), load_tokenizer("pylm")


@pytest.fixture
def lm(pylm):
    return OneSampleModel(*pylm, limit=1024, stops=(1,))


@pytest.fixture
def task(tmp_path):
    def make(*rows, passes=None, new_tokens=8):
        path = tmp_path / "toy.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        file = read_task_file(path)
        return FileTask(file.items, task_config(file, new_tokens=new_tokens, passes=passes))

    return make


def requests(kind, *arguments):
    return [
        Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)
    ]


def test_likelihoods_are_those_of_the_harness_s_own_model(pylm, lm):
    theirs = HFLM(pretrained=pylm[0], tokenizer=pylm[1], batch_size=1, add_bos_token=True)
    asked = [("import", " os"), ("def f(x):\n    ", "return x + 1"), ("", "class A:")]
    ours = lm.loglikelihood(requests("loglikelihood", *asked))
    expected = theirs.loglikelihood(requests("loglikelihood", *asked), disable_tqdm=True)
    for (nats, greedy), (wanted, first) in zip(ours, expected, strict=True):
        assert nats == pytest.approx(wanted, rel=1e-5)
        assert greedy == first
    # With add_bos_token the harness puts two BOS before a text; its default for these puts one.
    theirs = HFLM(pretrained=pylm[0], tokenizer=pylm[1], batch_size=1, add_bos_token=False)
    texts = [("import os\nimport sys\n" * 20,)]
    assert lm.loglikelihood_rolling(requests("loglikelihood_rolling", *texts)) == pytest.approx(
        theirs.loglikelihood_rolling(requests("loglikelihood_rolling", *texts), disable_tqdm=True),
        rel=1e-5,
    )


def test_answers_are_those_of_the_harness_s_own_model(pylm, lm):
    theirs = HFLM(pretrained=pylm[0], tokenizer=pylm[1], batch_size=1, add_bos_token=True)
    settings = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    asked = [("import os\nimport", settings), ("class A:\n    def __init__(self", settings)]
    ours = lm.generate_until(requests("generate_until", *asked))
    assert ours == theirs.generate_until(requests("generate_until", *asked), disable_tqdm=True)


def test_a_task_is_scored_as_the_harness_scores_its_own_model(pylm, lm, task):
    theirs = HFLM(pretrained=pylm[0], tokenizer=pylm[1], batch_size=1, add_bos_token=True)
    ours, samples = run_task(lm, task(*CHOICES), Asking())
    wanted = simple_evaluate(
        model=theirs,
        tasks=[task(*CHOICES)],
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )
    assert ours.values == tuple(each["acc_norm"] for each in wanted["samples"]["toy"])
    assert ours.metrics == {m: wanted["results"]["toy"][f"{m},none"] for m in ("acc", "acc_norm")}
    assert ours.metric == "acc_norm"
    assert ours.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    asked = samples[0]["arguments"]
    assert asked[0] == ("Question: the opposite of up?\nAnswer:", " down")
    assert samples[1]["arguments"][1] == ("two and two is", " five")


def test_asking_changes_what_is_asked(lm, task):
    found, samples = run_task(lm, task(*CHOICES), Asking(limit=2, shots=1, metric="acc"))
    assert (len(found.values), found.shots, found.metric) == (2, 1, "acc")
    assert "two and two is four" in samples[0]["arguments"][0][0] or (
        "def f(x): return x" in samples[0]["arguments"][0][0]
    )
    again, _ = run_task(lm, task(*CHOICES), Asking(limit=2, shots=1, metric="acc"))
    assert again == found
    with pytest.raises(UnknownNameError, match=r"no metric 'f1'.*it has acc, acc_norm"):
        run_task(lm, task(*CHOICES), Asking(metric="f1"))


def test_contexts_pairs_and_continuations(lm, task):
    contexts = {"context_options": ["the dog", "the dogs"], "continuation": "runs", "gold": 0}
    found, samples = run_task(lm, task(contexts), Asking())
    assert samples[0]["arguments"] == [("the dog", " runs"), ("the dogs", " runs")]
    assert found.chance == 0.5
    pair = {"sentence_good": "He is here.", "sentence_bad": "He are here."}
    _, samples = run_task(lm, task(pair), Asking())
    assert samples[0]["arguments"] == [("", "He is here."), ("", "He are here.")]
    words = {"context": "one two three", "continuation": "four"}
    found, samples = run_task(lm, task(words), Asking())
    assert samples[0]["arguments"] == [("one two three", " four")]
    assert found.chance == 0


def test_white_space_at_the_end_of_a_context_is_not_doubled(lm, task):
    contexts = {"context_options": ["the dog ", "the dogs\n"], "continuation": "runs", "gold": 0}
    _, samples = run_task(lm, task(contexts), Asking())
    assert samples[0]["arguments"] == [("the dog", " runs"), ("the dogs", " runs")]
    _, samples = run_task(lm, task({"context": "one two\n", "continuation": "three"}), Asking())
    assert samples[0]["arguments"] == [("one two\n", "three")]


@pytest.mark.parametrize(
    ("said", "strict", "last"),
    [("so 5.\n#### 1,234", 1, 1), ("it is 1234", 0, 1), ("#### 7 not 1234", 0, 1), ("none", 0, 0)],
)
def test_numbers_are_read_as_gsm8k_does(tmp_path, said, strict, last):
    path = tmp_path / "sums.jsonl"
    path.write_text(json.dumps({"question": "?", "answer": "1234 it is\n#### 1,234"}))
    config = task_config(read_task_file(path), new_tokens=9, passes=None)
    found = config["process_results"]({"answer": "1234 it is\n#### 1,234"}, [said])
    assert found == {"exact_match": strict, "last_number": last}
    assert config["num_fewshot"] == 5


def test_short_answers_match_but_for_case_and_punctuation(tmp_path):
    path = tmp_path / "short.jsonl"
    path.write_text(json.dumps({"question": "?", "answer": "The Sun."}))
    score = task_config(read_task_file(path), new_tokens=9, passes=None)["process_results"]
    assert score({"answer": "The Sun."}, [" the sun"]) == {"exact_match": 1}
    assert score({"answer": "The Sun."}, [" the moon"]) == {"exact_match": 0}


def test_code_runs_against_its_tests(shared_data):
    file = read_task_file(shared_data / "humaneval" / "HumanEval.jsonl.gz")
    passes = lambda program: run_program(program).passed
    score = task_config(file, new_tokens=9, passes=passes)["process_results"]
    right = "    return sorted(x for x in l if x > 0)\n"
    item = {
        "prompt": "def f(l):\n",
        "test": "def check(c):\n    assert c([2, -1, 1]) == [1, 2]",
        "entry_point": "f",
    }
    assert score(item, [right]) == {"pass_at_1": 1}
    assert score(item, ["    return l\n"]) == {"pass_at_1": 0}
    # The first of the set: nothing written is no solution.
    assert score(file.items[0], ["    pass\n"]) == {"pass_at_1": 0}


def test_questions_that_do_not_fit_lose_their_beginning_and_are_counted(pylm):
    short = OneSampleModel(*pylm, limit=8)
    assert len(short.loglikelihood(requests("loglikelihood", ("a b c d e f g h i j", " k")))) == 1
    assert short.cut == 1
    with pytest.raises(DataError, match="but the model takes 8"):
        short.loglikelihood(requests("loglikelihood", ("a", " b" * 30)))
    with pytest.raises(UnsupportedError, match="256 new tokens, but the model takes 8"):
        short.generate_until(requests("generate_until", ("a", {})))
    with pytest.raises(UnsupportedError, match="samples its answers"):
        short.generate_until(requests("generate_until", ("a", {"do_sample": True})))


def test_bos_is_by_the_rule(pylm):
    ids = {
        bos: OneSampleModel(*pylm, limit=64, bos=bos).tok_encode("x") for bos in ("auto", "never")
    }
    assert ids["auto"] == [0, *ids["never"]]
    assert OneSampleModel(*pylm, limit=64).tok_encode("<|bos|>x") == ids["auto"]


def toy_logits(ids):
    """Token t is followed by t + 1, with certainty 2 nats over each of four others."""
    logits = torch.zeros(1, ids.shape[1], 5)
    return logits.scatter(2, ((ids + 1) % 5)[..., None], 2.0)


def test_likelihood_by_hand():
    found = likelihood(toy_logits, [0, 1], [2, 3], limit=64)
    assert found.nats == pytest.approx(2 * (2 - math.log(math.e**2 + 4)))
    assert (found.greedy, found.cut) == (True, 0)
    found = likelihood(toy_logits, [0, 1], [2, 4], limit=3)
    assert found.nats == pytest.approx(2 - 2 * math.log(math.e**2 + 4))
    assert (found.greedy, found.cut) == (False, 0)
    assert likelihood(toy_logits, [0, 1], [2, 3], limit=2).cut == 1
    with pytest.raises(NumericalError, match="not finite"):
        likelihood(lambda ids: toy_logits(ids) * math.nan, [0], [1], limit=9)


@pytest.mark.parametrize("prompt", ["import os\nimport", "class A:\n"])
def test_greedy_continuations_are_those_of_transformers(pylm, prompt):
    model, tokenizer = pylm
    ids = tokenizer(prompt)["input_ids"]
    made = continue_greedily(model, ids, new_tokens=20, stops=(1,))
    expected = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0]
    assert made == [i for i in expected[len(ids) :].tolist() if i != 1]
    cut = continue_greedily(model, ids, new_tokens=20, done=lambda made: len(made) == 3)
    assert cut == made[:3]
    assert (
        continue_greedily(model, ids, new_tokens=20, stops=made[2:3]) == made[: made.index(made[2])]
    )
