"""What is asked of a model for each layout of a task file, and how its answer is scored.

Prompts follow lm-evaluation-harness where it has the task (arc_easy, piqa, winogrande, blimp,
lambada_openai, gsm8k, humaneval), so that numbers are comparable; they differ where a file
holds less than the harness's data set, and `DESCRIPTIONS` says what was asked.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from typing import Any

from pennyweight.evaluate.task_files import Item, TaskFile

REVISION = 2
"""Of how items are asked and scored; raised with every change, so that no stored score of an
earlier one is taken for a new one."""

DESCRIPTIONS: Mapping[str, str] = {
    "code": "the prompt; what follows runs against the tests",
    "choices": "the query, with '\\nAnswer:' after a 'Question:'; choices scored after a space",
    "contexts": "the continuation, scored after each context and a space",
    "minimal_pair": "both sentences scored from the start",
    "answer": "'Question: ...\\nAnswer:', generated to the end of the line or the next question",
    "continuation": "the last words scored after the context and white space; right if greedy",
}

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
FINAL = re.compile(r"####\s*(" + NUMBER.pattern + ")")
CODE_ENDS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # as in the HumanEval paper, 2.1
GSM8K_SHOTS = 5  # without examples nothing says that an answer ends in '#### 18'


def task_config(
    file: TaskFile, *, new_tokens: int, passes: Callable[[str], bool] | None
) -> dict[str, Any]:
    """The harness's configuration of a file's task.

    `passes` runs a program and says whether its tests passed; only the layout `code` needs it.
    """
    common = {
        "task": file.name,
        "test_split": "test",
        "fewshot_split": "test",  # the harness leaves out the item itself
        "num_fewshot": None,
    }
    if file.layout == "code":
        assert passes is not None, "refused before"
        return common | _code(new_tokens, passes)
    if file.layout == "answer":
        return common | _answer(file, new_tokens)
    return common | CONFIGS[file.layout]


def _means(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


def _question(item: Item) -> str:
    query = item["query"].rstrip()
    return f"{query}\nAnswer:" if query.startswith("Question:") else query


def _continued(item: Item) -> str:
    """After a space, or after the white space that the context ends in."""
    return item["continuation"] if item["context"][-1:].isspace() else f" {item['continuation']}"


CONFIGS: Mapping[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": _question,
        "doc_to_choice": lambda item: item["choices"],
        "doc_to_target": lambda item: item["gold"],
        "metric_list": _means("acc", "acc_norm"),
    },
    "contexts": {
        "output_type": "multiple_choice",
        "doc_to_text": lambda item: item["gold"],
        "doc_to_choice": lambda item: [option.rstrip() for option in item["context_options"]],
        "doc_to_target": lambda item: item["continuation"],
        "metric_list": _means("acc"),
    },
    "minimal_pair": {
        "output_type": "multiple_choice",
        "doc_to_text": lambda item: "",
        "doc_to_choice": lambda item: [item["sentence_good"], item["sentence_bad"]],
        "doc_to_target": lambda item: 0,
        "target_delimiter": "",
        "metric_list": _means("acc"),
    },
    "continuation": {
        "output_type": "loglikelihood",
        "doc_to_text": lambda item: item["context"],
        "doc_to_target": _continued,
        "target_delimiter": "",
        "metric_list": _means("acc"),
    },
}


def _code(new_tokens: int, passes: Callable[[str], bool]) -> dict[str, Any]:
    def score(item: Item, answers: list[str]) -> dict[str, float]:
        checks = f"{item['test']}\ncheck({item['entry_point']})\n"
        return {"pass_at_1": float(passes(f"{item['prompt']}{answers[0]}\n{checks}"))}

    return {
        "output_type": "generate_until",
        "doc_to_text": lambda item: item["prompt"],
        "doc_to_target": lambda item: item["entry_point"],
        "process_results": score,
        "generation_kwargs": {"until": list(CODE_ENDS), "max_gen_toks": new_tokens},
        "metric_list": _means("pass_at_1"),
    }


def _answer(file: TaskFile, new_tokens: int) -> dict[str, Any]:
    numeric = all(FINAL.search(item["answer"]) for item in file.items)
    return {
        "output_type": "generate_until",
        "doc_to_text": lambda item: f"Question: {item['question']}\nAnswer:",
        "doc_to_target": lambda item: item["answer"],
        "process_results": _number_matches if numeric else _text_matches,
        "num_fewshot": GSM8K_SHOTS if numeric else None,
        "generation_kwargs": {
            "until": ["Question:"] if numeric else ["\n"],
            "max_gen_toks": new_tokens,
        },
        "metric_list": _means(*(("exact_match", "last_number") if numeric else ("exact_match",))),
    }


def _number_matches(item: Item, answers: list[str]) -> dict[str, float]:
    """GSM8K: the number after '####', and more kindly the last number of all."""
    gold = FINAL.search(item["answer"])
    assert gold is not None, "all items have one"
    said = FINAL.search(answers[0])
    numbers = NUMBER.findall(answers[0])
    return {
        "exact_match": float(said is not None and _plain(said[1]) == _plain(gold[1])),
        "last_number": float(bool(numbers) and _plain(numbers[-1]) == _plain(gold[1])),
    }


def _plain(number: str) -> float:
    return float(number.replace(",", "").replace("$", ""))


def _text_matches(item: Item, answers: list[str]) -> dict[str, float]:
    """Equal but for case, punctuation and white space."""
    return {"exact_match": float(_words(answers[0]) == _words(item["answer"]))}


def _words(text: str) -> list[str]:
    return text.lower().translate(str.maketrans("", "", string.punctuation)).split()
