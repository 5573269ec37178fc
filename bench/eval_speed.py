"""Tokens per second of perplexity: ours against lm-evaluation-harness's own transformers model.

    python bench/eval_speed.py [MODEL] [--documents 12] [--rounds 3] [--batch 8] [--threads 1]

Both score the same tokens of the held-out standard library, in float32, with windows of at most 512
tokens that do not overlap. Ours begin with BOS, the harness's with the last token before (but the
first), so the nats differ a little. Rounds alternate: a busy machine is busy for both. Threads are
used as each tool does: ours scores a document on each, as `pennyweight eval`, the harness spreads
every product over all.
"""

import argparse
import logging
import statistics
import time

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from pennyweight.evaluate import score_documents
from pennyweight.model.load import load_model, load_tokenizer
from pennyweight.model.text import Document, documents
from pennyweight.model.tokens import tokenize
from pennyweight.model.workers import start_workers

CONTEXT = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="pylm")
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--characters", type=int, default=8000, help="of each document")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="of the harness; ours takes one")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)

    model, tokenizer = load_model(asked.model), load_tokenizer(asked.model)
    texts = [
        Document(name=text.name, text=text.text[: asked.characters])
        for text in documents("stdlib-heldout")[: asked.documents]
    ]
    tokens = [tokenize(text, tokenizer) for text in texts]
    harness = HFLM(
        pretrained=model, tokenizer=tokenizer, max_length=CONTEXT, batch_size=asked.batch,
        add_bos_token=False,
    )  # fmt: skip
    requests = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text.text,), idx=0)
        for text in texts
    ]
    count = sum(len(each.ids) - 1 for each in tokens)

    def ours() -> float:
        one = lambda text: score_documents(model, [text], context=CONTEXT).windows.nll.sum().item()
        with start_workers(asked.threads) as workers:
            return sum(workers.map(one, tokens))

    def theirs() -> float:
        torch.set_num_threads(asked.threads)
        return -sum(harness.loglikelihood_rolling(requests, disable_tqdm=True))

    rates: dict[str, list[float]] = {"ours": [], "harness": []}
    for number in range(asked.rounds + 1):
        nll = {}
        for name, score in (("ours", ours), ("harness", theirs)):
            started = time.perf_counter()
            nll[name] = score()
            if number:  # the first round warms both up
                rates[name].append(count / (time.perf_counter() - started))
    print(f"{asked.model}: {count} tokens, {len(texts)} documents, {asked.threads} threads")
    for name, found in rates.items():
        print(
            f"{name:8} {statistics.median(found):10.0f} tokens/s, {nll[name] / count:.4f} nats each"
        )
    ratios = [a / b for a, b in zip(rates["ours"], rates["harness"], strict=True)]
    print(
        f"ratio {statistics.median(ratios):.2f} (rounds: {', '.join(f'{r:.2f}' for r in ratios)})"
    )


if __name__ == "__main__":
    main()
