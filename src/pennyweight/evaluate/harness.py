"""Tasks through lm-evaluation-harness, computed by our own engine.

The harness brings the tasks: their prompts, examples, filters and metrics. The model is ours: this
class answers the harness's three questions one sample at a time (answers.py), for the model and its
reference alike. Imported only where tasks are asked for, because the harness is an extra.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import lm_eval.api.task
import torch
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.evaluator import evaluate
from torch import nn
from tqdm import tqdm

from pennyweight.core import Mapper, Serial
from pennyweight.core.errors import UnknownNameError, UnsupportedError
from pennyweight.evaluate.answers import continue_greedily, leading_bos, likelihood
from pennyweight.evaluate.outcomes import TaskScores
from pennyweight.evaluate.scores import score_documents
from pennyweight.evaluate.task_files import Item
from pennyweight.model.tokens import BosRule, Tokenizer, Tokens

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its remarks are about its own settings
lm_eval.api.task.tqdm = partial(tqdm, disable=True)  # a bar for preparing, which takes no time

NEW_TOKENS = 256
ACCURACIES = ("acc_norm", "acc", "exact_match", "pass_at_1")
"""The metric of a task is the first of these that it has: the one that leaderboards of the field
use for it. A task with none of them is judged by its first metric that is a mean over items."""


class OneSampleModel(TemplateLM):
    """A model in memory as the harness wants it.

    `chat`: the harness puts every question through the tokenizer's chat template. Text in
    which the template has written BOS gets no second one. `mapper`: who scores several questions
    at a time; each is still computed by itself.
    """

    mapper: Mapper = Serial()

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, *, limit: int, bos: BosRule = "auto",
        stops: Sequence[int] = (), new_tokens: int = NEW_TOKENS,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.tokenizer, self.limit = model, tokenizer, limit
        self.stops, self.new_tokens = frozenset(stops), new_tokens
        self.bos = leading_bos(tokenizer, bos)
        self.cut = 0  # questions that lost their beginning because they did not fit

    @property
    def eot_token_id(self) -> int:
        token: Any = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is: BOS, else EOS, as in the harness's own models."""
        bos: Any = self.tokenizer.bos_token_id
        eos: Any = self.tokenizer.eos_token_id
        if bos is None and eos is None:
            raise UnsupportedError(
                "the tokenizer has neither BOS nor EOS, so that a text without context "
                "(as in a minimal pair) cannot be scored from its first token"
            )
        return eos if bos is None else bos

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: object
    ) -> list[int]:
        ids = self.tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"]
        if self.bos is None or add_special_tokens is False or ids[:1] == [self.bos]:
            return ids
        return [self.bos, *ids]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As the harness, where the tokens of the context begin those of the whole.

        A tokenizer that joins words (TinyStories-656K's) joins the two. As many tokens of the whole
        as the context has by itself are then another text; here the answer begins with the first
        token that differs.
        """
        asked, answer = super()._encode_pair(context, continuation)
        whole = self.tok_encode(context + continuation)
        if whole == [*asked, *answer]:
            return asked, answer
        pairs = zip(asked, whole, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), len(asked))
        return whole[: max(1, shared)], whole[max(1, shared) :]

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: object
    ) -> list[tuple[float, bool]]:
        found = self.mapper.map(
            lambda each: likelihood(self.model, each[1], each[2], self.limit), requests
        )
        self.cut += sum(each.cut > 0 for each in found)
        return [(each.nats, each.greedy) for each in found]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        return [self._rolling(*request.args) for request in requests]

    def _rolling(self, text: str) -> float:
        """The log likelihood of all of a text, in windows that do not overlap."""
        ids = [self.prefix_token_id, *self.tok_encode(text, add_special_tokens=False)]
        document = Tokens(
            name="text", ids=torch.tensor(ids), has_bos=True,
            byte_counts=torch.zeros(len(ids), dtype=torch.float64),
        )  # fmt: skip
        return -score_documents(self.model, [document], context=self.limit).windows.nll.sum().item()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, settings: Mapping[str, Any]) -> str:
        if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
            raise UnsupportedError("the task samples its answers; only greedy ones are compared")
        ends = settings.get("until") or []
        ends = [ends] if isinstance(ends, str) else list(ends)
        asked = int(settings.get("max_gen_toks", self.new_tokens))
        room = self.limit - asked
        if room < 1:
            raise UnsupportedError(
                f"{asked} new tokens, but the model takes {self.limit} with the question; "
                "ask for fewer (--new-tokens)"
            )
        ids = self.tok_encode(context)
        self.cut += len(ids) > room
        made = continue_greedily(
            self.model, ids[-room:], new_tokens=asked, stops=self.stops,
            done=lambda made: any(end in self._text(made) for end in ends),
        )  # fmt: skip
        text = self._text(made)
        return text[: min((text.find(end) for end in ends if end in text), default=None)]

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )


class FileTask(ConfigurableTask):
    """A task whose items are in memory."""

    def __init__(self, items: Sequence[Item], config: dict[str, Any]) -> None:
        self._items = [dict(item) for item in items]
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: object) -> None:
        self.dataset = {"test": Dataset.from_list(self._items)}


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a task is put to a model."""

    limit: int | None = None  # only the first items
    shots: int | None = None  # examples before a question; None: as the task says
    chat: bool = False  # through the tokenizer's chat template
    metric: str | None = None  # that the task is judged by; None: see ACCURACIES
    seed: int = 0  # of the examples


def run_task(
    lm: OneSampleModel, task: Task, asking: Asking
) -> tuple[TaskScores, list[dict[str, Any]]]:
    """One task: its scores, and what was asked and answered, item by item.

    Raises UnsupportedError for a task without a metric that is a mean over items.
    """
    before = lm.cut
    name = task.task_name
    default = task.get_config("num_fewshot")
    if default != 0:  # as the harness has it: a task that says 0 is asked without examples
        shots = default if asking.shots is None else asking.shots
        task.set_config("num_fewshot", shots or 0)
    task.set_fewshot_seed(asking.seed)
    # What simple_evaluate calls, without the seconds it takes to describe the machine each time.
    found: Any = evaluate(
        lm=lm, task_dict={"tasks": {name: task}, "groups": {}, "group_map": {}},
        limit=asking.limit, bootstrap_iters=0, apply_chat_template=asking.chat,
        fewshot_as_multiturn=True,
    )  # fmt: skip
    samples = found["samples"][name]
    first = samples[0]["filter"]
    samples = sorted((s for s in samples if s["filter"] == first), key=lambda s: s["doc_id"])
    means = {
        key.partition(",")[0]: value
        for key, value in found["results"][name].items()
        if key.endswith(f",{first}") and isinstance(value, float | int)
    }
    metric = _metric(name, asking.metric, samples, means)
    return (
        TaskScores(
            task=name,
            metric=metric,
            values=tuple(float(sample[metric]) for sample in samples),
            items=_digest(samples),
            chance=_chance(task, metric, samples),
            metrics={key: float(value) for key, value in means.items() if "_stderr" not in key},
            shots=int(found["n-shot"][name]),
            cut=lm.cut - before,
        ),
        [dict(sample) for sample in samples],
    )


def _metric(
    task: str, asked: str | None, samples: Sequence[Mapping[str, Any]], means: Mapping[str, float]
) -> str:
    """The metric that a task is judged by; it must be a mean over items, or nothing is paired."""
    usable = []
    for metric in samples[0]["metrics"]:
        values = [sample[metric] for sample in samples]
        if metric in means and all(isinstance(value, int | float) for value in values):
            mean = sum(values) / len(values)
            if abs(mean - means[metric]) <= 1e-9 * max(1.0, abs(mean)):
                usable.append(metric)
    if asked is not None and asked not in usable:
        raise UnknownNameError(
            f"{task}: has no metric {asked!r} that is a mean over items; it has "
            f"{', '.join(usable) or 'none'}"
        )
    for metric in (asked, *ACCURACIES, *usable):
        if metric is not None and metric in usable:
            return metric
    raise UnsupportedError(
        f"{task}: none of its metrics ({', '.join(means)}) is a mean over its items, so that two "
        "models cannot be compared item by item; for perplexities use eval without --tasks"
    )


def _chance(task: Task, metric: str, samples: Sequence[Mapping[str, Any]]) -> float | None:
    """The score of guessing; None if nobody knows."""
    if metric not in ACCURACIES:
        return None
    if task.OUTPUT_TYPE != "multiple_choice":
        return 0.0
    choices = [len(task.doc_to_choice(sample["doc"])) for sample in samples]
    return sum(1 / count for count in choices) / len(choices)


def _digest(samples: Sequence[Mapping[str, Any]]) -> str:
    """Equal for the same items in the same order."""
    content = hashlib.sha256()
    for sample in samples:
        content.update(f"{sample['doc_hash']}:{sample['target_hash']};".encode())
    return content.hexdigest()
