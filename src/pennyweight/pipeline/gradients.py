"""The pass before the main loop, where a plan asks for gradients: what each weight's is in size.

Forward through the model as it was given, block by block, then back the same way. One block is in
memory at a time; what enters the blocks and what comes back waits in files, in a folder of the work
directory:

    state_00003      the hidden states that enter block 3 (of the block after the last: leave it)
    signal_00003     the gradient of the loss with respect to them
    block_00003      the result for block 3, by tensor; whatever it was made from is deleted

A file that exists is whole, so an interrupted pass goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from pennyweight.core import NumericalError, PennyweightError, Progress, Stats
from pennyweight.model.backward import Call, Passed, back, forward, tail
from pennyweight.model.capture import Sample, capture
from pennyweight.model.memory import give_back
from pennyweight.model.prompt import Prompt
from pennyweight.model.stream import Block
from pennyweight.model.workers import Workers
from pennyweight.model.writer import Entry, disk_errors, write_safetensors
from pennyweight.observe.gradient import GRADIENT_FIELDS, GradientCollector
from pennyweight.pipeline.plan import Plan
from pennyweight.pipeline.survey import Site, Survey

FOLDER = "gradients"
CHUNK = 4  # samples in a block at once: bounds memory, and is the order of the sums


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """The gradients of a plan's tensors: `compute` makes their files, `of` reads them."""

    plan: Plan
    survey: Survey
    folder: Path
    rows: Tensor | Sequence[Prompt] | None  # token ids [samples, tokens], or prompts
    workers: Workers
    progress: Progress

    def needs(self, index: int) -> dict[Site, frozenset[str]]:
        """Which gradient fields the tensors of block `index` need, where they need any."""
        tasks = self.plan.by_tensor
        found = {
            site: self.plan.needs(tasks[site.tensor]) & GRADIENT_FIELDS
            for site in self.survey.sites
            if site.block == index and site.tensor in tasks
        }
        return {site: needs for site, needs in found.items() if needs}

    def of(self, site: Site, stats: Stats) -> Stats:
        """`stats` and what the gradients say of one tensor; `tokens` where none were counted."""
        with safe_open(self._file("block", site.block), framework="pt") as opened:
            facts = json.loads(opened.metadata()["linears"])[site.tensor]
            fields = {
                name: opened.get_tensor(f"{site.tensor}.{name}").clone() for name in facts["fields"]
            }
        tokens = stats.tokens or facts["tokens"]
        return replace(stats, tokens=tokens, samples=facts["samples"], **fields)

    def compute(self, todo: list[int]) -> None:
        """Make the files of the blocks that are still to do. Does nothing if nothing is needed.

        Raises NumericalError that names the block where a gradient is not finite.
        """
        wanted = [index for index in todo if self.needs(index)]
        if not wanted or all(self._file("block", index).is_file() for index in wanted):
            return
        assert self.rows is not None, "a plan that needs gradients has calibration data"
        with disk_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
        self.progress.say(f"gradients of {len(self.rows)} samples, block by block")
        samples = capture(self.survey.skeleton, self.rows, self._dtype)
        count = len(self.survey.topologies)
        done = [index for index in range(count) if self._file("block", index).is_file()]
        if not done and not self._file("signal", count).is_file():
            self._forward(samples, count)
            self._tail(samples, count)
        for index in reversed(range(wanted[0], min(done, default=count))):
            self._back(index, samples)
        self._delete("signal", wanted[0])

    @property
    def _dtype(self) -> torch.dtype:
        return self.plan.compute_dtype

    def _block(self, index: int) -> Block:
        return Block(self.survey.skeleton, index, self.survey.topologies[index], self._dtype)

    def _forward(self, samples: list[Sample], count: int) -> None:
        """Leave what enters each block, and what leaves the last, in files."""
        self._save("state", 0, [sample.hidden for sample in samples])
        for index in range(count):
            if self._file("state", index + 1).is_file():
                continue
            block = self._block(index)
            for sample, hidden in zip(samples, self._load("state", index), strict=True):
                sample.hidden = hidden
            with block.loaded():
                states = forward(index, block.module, samples, self.workers)
            self._check(states, block, "output")
            self._save("state", index + 1, states)
            give_back()

    def _tail(self, samples: list[Sample], count: int) -> None:
        states, rows = self._load("state", count), self.rows
        assert rows is not None
        with tail(self.survey.skeleton, samples[0], self._dtype) as end:
            step = lambda index: end.gradient(rows[index], states[index])
            found = self.workers.map(step, range(len(rows)))
        self._save("signal", count, [gradient for gradient, _ in found])
        loss = sum(loss for _, loss in found) / len(found)
        self.progress.say(f"loss on the calibration text: {loss:.4f} nats a token")
        self._delete("state", count)

    def _back(self, index: int, samples: list[Sample]) -> None:
        """From the gradient of the output of block `index` to that of its input, and its file."""
        block, needs = self._block(index), self.needs(index)
        inputs = [
            Sample(state, sample.calls)
            for state, sample in zip(self._load("state", index), samples, strict=True)
        ]
        work = list(zip(inputs, self._load("signal", index + 1), strict=True))
        collectors = {
            site: GradientCollector(site.shape, fields, self.workers)
            for site, fields in needs.items()
        }
        names, gradients = [site.local for site in needs], []
        with block.loaded():
            for start in range(0, len(work), CHUNK):
                part = work[start : start + CHUNK]
                passed = back(index, block.module, names, part, self.workers)
                gradients += [one.gradient for one in passed]
                for site, collector in collectors.items():
                    self._collect(collector, site, passed)
                del passed
        self._check(gradients, block, "gradient")
        self._save("signal", index, gradients)
        self._save_block(index, {site: one.stats() for site, one in collectors.items()})
        self._delete("state", index)
        self._delete("signal", index + 1)
        give_back()

    def _collect(self, collector: GradientCollector, site: Site, passed: list[Passed]) -> None:
        calls = [one.calls.pop(site.local, []) for one in passed]
        pairs = [_joined(part, site.shape[0]) for part in calls if part]
        try:
            collector.add(pairs)
        except PennyweightError as error:
            raise type(error)(f"{site.tensor}: {error}") from None

    def _check(self, tensors: list[Tensor], block: Block, what: str) -> None:
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise NumericalError(
                f"{block.prefix[:-1]}: the block's {what} holds NaN or Inf on calibration data"
            )

    def _file(self, kind: str, index: int) -> Path:
        return self.folder / f"{kind}_{index:05}.safetensors"

    def _save(self, kind: str, index: int, tensors: list[Tensor]) -> None:
        """One tensor of each sample."""
        entries = [Entry.of(f"{i:06}", tensor) for i, tensor in enumerate(tensors)]
        write_safetensors(self._file(kind, index), entries, {"plan": self.plan.digest})

    def _load(self, kind: str, index: int) -> list[Tensor]:
        with safe_open(self._file(kind, index), framework="pt") as opened:
            return [opened.get_tensor(name) for name in sorted(opened.keys())]

    def _save_block(self, index: int, found: dict[Site, Stats]) -> None:
        facts, entries = {}, []
        for site, stats in found.items():
            fields = sorted(f for f in GRADIENT_FIELDS if getattr(stats, f) is not None)
            facts[site.tensor] = {
                "samples": stats.samples, "tokens": stats.tokens, "fields": fields,
            }  # fmt: skip
            entries += [Entry.of(f"{site.tensor}.{f}", stats.require(f)) for f in fields]
        metadata = {"plan": self.plan.digest, "linears": json.dumps(facts, sort_keys=True)}
        write_safetensors(self._file("block", index), entries, metadata)

    def _delete(self, kind: str, index: int) -> None:
        with disk_errors(self.folder):
            self._file(kind, index).unlink(missing_ok=True)


def _joined(calls: list[Call], width: int) -> tuple[Tensor, Tensor]:
    """The calls of one linear by one sample as one; what the loss does not feel has gradient 0."""
    dy = [call.x.new_zeros(len(call.x), width) if call.dy is None else call.dy for call in calls]
    return torch.cat([call.x for call in calls]), torch.cat(dy)
