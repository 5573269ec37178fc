import json
import shutil

import pytest
import torch

from pennyweight.core import DataError, UnknownNameError, UnsupportedError
from pennyweight.evaluate.recovery import Judging
from pennyweight.evaluate.verdict import Verdict
from pennyweight.model.attention import AttentionFormats
from pennyweight.pipeline import tasks as tasks_module
from pennyweight.pipeline.engine import Keeping, Run, describe_chat, stop_tokens
from pennyweight.pipeline.similarity import AnswerSettings, compare_answers
from pennyweight.pipeline.tasks import Reference, TaskSettings, evaluate_tasks
from pennyweight.records import Store
from tests.byte_tokenizer import byte_tokenizer
from tests.tiny_llama import save_tiny_llama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("noisy"), noise=0.05)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    pairs = [{"sentence_good": f"a{i}", "sentence_bad": f"b{i}"} for i in range(12)]
    words = [{"context": f"w{i}", "continuation": "x"} for i in range(6)]
    code = {
        "prompt": "def f():\n",
        "entry_point": "f",
        "test": "def check(c):\n    assert c() == 1",
    }
    for name, rows in (("pairs", pairs), ("words", words), ("code", [code])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def settings(files, *names, **values):
    return TaskSettings(tasks=tuple(str(files / f"{name}.jsonl") for name in names), **values)


def test_a_comparison_says_what_was_asked_and_found(tiny, noisy, files):
    judging = Judging(keep_chance=True, resamples=200, budget_percent=100.0)
    report = evaluate_tasks(
        Run(model=noisy), settings(files, "pairs", "words", limit=5), judging=judging,
        against=Reference(model=tiny, noise_floor=True),
    )  # fmt: skip
    assert (report.model, report.reference) == (str(noisy), str(tiny))
    assert [(each.task, len(each.values)) for each in report.scores] == [("pairs", 5), ("words", 5)]
    assert report.bos == "auto: the tokenizer adds '<s>'"
    assert (report.chat_template, report.code) == ("none", "")
    assert report.noise_floor == "the reference again in bfloat16"
    assert report.prompts["pairs"] == "both sentences scored from the start"
    assert report.comparison.tasks[0].items == 5
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["settings"]["limit"] == 5


def test_a_model_against_itself_has_no_noise(tiny, files):
    report = evaluate_tasks(
        Run(model=tiny), settings(files, "pairs"), against=Reference(model=tiny)
    )
    (found,) = report.comparison.tasks
    assert (found.only_model, found.only_reference, found.p_value) == (0, 0, 1.0)
    assert found.verdict in (Verdict.CHANCE, Verdict.UNDECIDED)
    assert "bit for bit" in report.noise_floor


def test_tasks_resume_from_the_records(tiny, noisy, files, tmp_path, monkeypatch):
    keeping = Keeping(records=tmp_path / "r.sqlite")
    asked = []
    real = tasks_module._Session._ask
    monkeypatch.setattr(
        tasks_module._Session, "_ask",
        lambda self, run, lm, name, identity: asked.append((str(run.model), name))
        or real(self, run, lm, name, identity),
    )  # fmt: skip
    evaluate_tasks(Run(model=noisy), settings(files, "pairs"), keeping=keeping)
    first = evaluate_tasks(
        Run(model=noisy), settings(files, "pairs", "words"), keeping=keeping,
        against=Reference(model=tiny),
    )  # fmt: skip
    assert asked == [
        (str(noisy), "pairs"), (str(noisy), "words"), (str(tiny), "pairs"), (str(tiny), "words"),
    ]  # fmt: skip
    assert first.resumed == 1
    count = len(Store.open(keeping.records).find())
    moved = shutil.copytree(noisy, tmp_path / "moved")  # another folder, the same model
    again = evaluate_tasks(
        Run(model=moved), settings(files, "pairs", "words"), keeping=keeping,
        against=Reference(model=tiny),
    )  # fmt: skip
    assert len(asked) == 4
    assert again.resumed == 4
    assert again.scores == first.scores
    assert again.comparison == first.comparison
    assert len(Store.open(keeping.records).find()) == count
    # What changes a score is asked anew: a limit, rounded attention, another type.
    for run, limit in (
        (Run(model=noisy), 3),
        (Run(model=noisy, attention=AttentionFormats(kv_cache="int8")), None),
        (Run(model=noisy, dtype=torch.bfloat16), None),
    ):
        assert (
            evaluate_tasks(run, settings(files, "pairs", limit=limit), keeping=keeping).resumed == 0
        )


def test_records_are_those_of_the_report(tiny, noisy, files, tmp_path):
    keeping = Keeping(records=tmp_path / "r.sqlite", samples=tmp_path / "s.jsonl")
    report = evaluate_tasks(
        Run(model=noisy), settings(files, "pairs"), keeping=keeping, against=Reference(model=tiny)
    )
    store = Store.open(keeping.records)
    (mine,) = store.find(metric="acc_percent", subject={"model": str(noisy)})
    (scores,) = report.scores
    assert mine.value == pytest.approx(100 * sum(scores.values) / 12)
    assert mine.lower < mine.value < mine.upper
    assert mine.wall_time_s > 0
    assert mine.versions["torch"] == torch.__version__
    (kept,) = store.find(metric="recovery_percent")
    assert kept.value == report.comparison.tasks[0].recovery_percent.value
    rows = [json.loads(line) for line in keeping.samples.read_text().splitlines()]
    assert len(rows) == 24
    assert {row["model"] for row in rows} == {str(tiny), str(noisy)}
    assert rows[0]["asked"] == [["", "a0"], ["", "b0"]]


def test_the_average_is_a_record_of_its_own(tiny, noisy, files, tmp_path):
    store = Store.open(tmp_path / "r.sqlite")

    def ask(*names, **judging):
        return evaluate_tasks(
            Run(model=noisy), settings(files, *names), keeping=Keeping(records=store.path),
            against=Reference(model=tiny), judging=Judging(keep_chance=True, **judging),
        )  # fmt: skip

    found = ask("pairs", "words").comparison.average
    (kept,) = store.find(metric="recovery_percent_average")
    ends = (kept.lower, kept.value, kept.upper)
    assert ends == tuple(getattr(found.recovery_percent, end) for end in ("low", "value", "high"))
    assert kept.detail["tasks"] == ["pairs", "words"]
    assert set(kept.subject["tasks"]) == {"pairs", "words"} and "task" not in kept.subject
    ask("pairs", "words")
    assert len(store.find(metric="recovery_percent_average")) == 1
    ask("pairs")  # other tasks, and another budget, are other averages
    ask("pairs", budget_percent=5.0)
    assert len(store.find(metric="recovery_percent_average")) == 3


def test_code_runs_only_when_asked(tiny, files):
    with pytest.raises(UnsupportedError, match=r"code.jsonl: .* add --run-code"):
        evaluate_tasks(Run(model=tiny), settings(files, "code"))
    report = evaluate_tasks(Run(model=tiny), settings(files, "code", run_code=True, new_tokens=4))
    assert report.scores[0].metric == "pass_at_1"
    assert "in processes with limits" in report.code


def test_errors_say_what_to_do(tiny, files, tmp_path, monkeypatch):
    def fails(error, match, model=tiny, **values):
        with pytest.raises(error, match=match):
            evaluate_tasks(Run(model=model), TaskSettings(**values))

    one = str(files / "pairs.jsonl")
    fails(DataError, "no task is named", tasks=())
    fails(DataError, "limit is 0", tasks=(one,), limit=0)
    fails(DataError, "12 examples are asked for, but it holds 12", tasks=(one,), shots=12)
    fails(DataError, "'pairs' is asked for twice", tasks=(one, one))
    fails(UnsupportedError, "the tokenizer has none", tasks=(one,), chat_template=True)
    other = save_tiny_llama(tmp_path / "other")
    byte_tokenizer(merges=("ab",)).save_pretrained(other)
    with pytest.raises(DataError, match="the tokenizers differ in 1 tokens"):
        evaluate_tasks(Run(model=tiny), settings(files, "pairs"), against=Reference(model=other))
    monkeypatch.setattr(tasks_module.importlib.util, "find_spec", lambda name: None)
    fails(UnsupportedError, r"pip install 'pennyweight\[tasks\]'", tasks=(one,))


def test_names_are_looked_up_before_anything_is_downloaded(tiny, monkeypatch):
    from pennyweight.evaluate import named_tasks

    class Manager(named_tasks.TaskManager):
        __init__ = object.__init__
        all_tasks = ("piqa", "offline")

        def load(self, names):
            raise ConnectionError("no route")

    monkeypatch.setattr(named_tasks, "TaskManager", Manager)
    with pytest.raises(UnknownNameError, match="did you mean 'piqa'"):
        evaluate_tasks(Run(model=tiny), TaskSettings(tasks=("piqua",)))
    with pytest.raises(DataError, match=r"'piqa' cannot be loaded \(no route\).*without a network"):
        evaluate_tasks(Run(model=tiny), TaskSettings(tasks=("piqa",)))


def test_a_task_that_runs_code_without_a_sandbox_is_refused(tiny, monkeypatch):
    from pennyweight.evaluate import named_tasks

    class Unsafe:
        task_name, UNSAFE_CODE = "humaneval", True

    class Manager(named_tasks.TaskManager):
        __init__ = object.__init__
        all_tasks = ("humaneval",)

        def load(self, names):
            return {"tasks": {"humaneval": Unsafe()}}

    monkeypatch.setattr(named_tasks, "TaskManager", Manager)
    with pytest.raises(UnsupportedError, match="without a sandbox"):
        evaluate_tasks(Run(model=tiny), TaskSettings(tasks=("humaneval",), run_code=True))


def test_a_chat_template_wraps_every_question(tmp_path, files):
    model = save_tiny_llama(tmp_path / "chat")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    tokenizer.save_pretrained(model)
    assert describe_chat(tokenizer, False) == "not applied; the tokenizer has one"
    keeping = Keeping(samples=tmp_path / "s.jsonl")
    report = evaluate_tasks(
        Run(model=model), settings(files, "words", chat_template=True), keeping=keeping
    )
    assert report.chat_template.startswith("the tokenizer's (SHA-256 ")
    assert json.loads(keeping.samples.read_text().split("\n")[0])["asked"][0][0] == "<s>[w0]"


def test_answers_are_compared(tiny, noisy, tmp_path):
    (prompts := tmp_path / "p.txt").write_text("one\ntwo\n\nthree\n")
    keeping = Keeping(records=tmp_path / "r.sqlite", samples=tmp_path / "s.jsonl")
    asked = AnswerSettings(prompts=str(prompts), new_tokens=8)
    report = compare_answers(Run(model=noisy), tiny, settings=asked, keeping=keeping)
    assert report.found.prompts == 3
    rows = [json.loads(line) for line in keeping.samples.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["one", "two", "three"]
    (kept,) = Store.open(keeping.records).find(metric="rougeL_percent")
    assert kept.value == report.found.rougeL_percent.value
    same = compare_answers(Run(model=tiny), tiny, settings=asked)
    assert same.found.equal_percent.value == 100
    json.dumps(same.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompts": "b"}', "p.jsonl:2: no prompt; expected"),
        ("p.jsonl", '{"prompt": " "}', "p.jsonl:1: no prompt"),
        ("p.jsonl", "{", "p.jsonl:1: not JSON"),
        ("p.txt", "\n \n", "holds no prompt"),
    ],
)
def test_prompts_that_are_none(tiny, tmp_path, name, text, message):
    (path := tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        compare_answers(Run(model=tiny), tiny, settings=AnswerSettings(prompts=str(path)))


def test_answers_must_fit(tiny, tmp_path):
    (path := tmp_path / "p.txt").write_text("a")
    with pytest.raises(DataError, match="64 new tokens, but the model takes 64"):
        compare_answers(Run(model=tiny), tiny, settings=AnswerSettings(prompts=str(path)))


def test_the_tokens_that_end_an_answer(tiny):
    assert stop_tokens("pylm") == (1,)
    assert stop_tokens(tiny) == (2,)  # Llama's default
