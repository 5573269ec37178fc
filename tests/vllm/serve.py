"""Prompt log-probabilities and a greedy continuation from vLLM: `serve.py JOB.json OUT.json`.

Runs in .venv-vllm, so it may import vLLM and the standard library and nothing of ours: what it
reports is what a server that has never heard of pennyweight makes of the files we wrote.

JOB: {"models": [{"name": ..., "path": ..., "dtype": "bfloat16"}], "prompts": [[id, ...], ...]};
     dtype may be left out.
OUT: {name: {"prompt_logprobs": [[null, float, ...], ...], "continuations": [[id, ...], ...]}}, or
     {name: {"error": text}} for a model that vLLM refused; any error makes the exit status 1.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

CONTINUATION_TOKENS = 16
# vLLM's defaults are for a server: most of the memory as cache, and reports over the network.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; its smallest
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, and so its errors
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": str(os.cpu_count()),
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its pinning wants to know the machine's NUMA nodes
    "HF_HUB_OFFLINE": "1",
}


def serve(path: str, dtype: str, prompts: list[list[int]]) -> dict:
    """What vLLM computes for the checkpoint at `path` with activations of `dtype`."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        path,
        dtype=dtype,
        enforce_eager=True,
        skip_tokenizer_init=not (Path(path) / "tokenizer.json").exists(),
        max_model_len=max(map(len, prompts)) + CONTINUATION_TOKENS,
        enable_prefix_caching=False,  # a cached prefix has no log-probabilities to report
    )
    sampling = SamplingParams(
        temperature=0,
        max_tokens=CONTINUATION_TOKENS,
        ignore_eos=True,
        prompt_logprobs=0,
        detokenize=False,
    )
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False
    )
    return {
        "prompt_logprobs": [
            [
                step and step[token].logprob
                for step, token in zip(out.prompt_logprobs, prompt, strict=True)
            ]
            for out, prompt in zip(outputs, prompts, strict=True)
        ],
        "continuations": [list(out.outputs[0].token_ids) for out in outputs],
    }


def serve_one(job_path: str, name: str, out_path: str) -> None:
    """The child's half of `main`: one model, whose memory goes when this process ends."""
    job = json.loads(Path(job_path).read_text())
    (model,) = (model for model in job["models"] if model["name"] == name)
    result = serve(model["path"], model.get("dtype", "bfloat16"), job["prompts"])
    Path(out_path).write_text(json.dumps(result))


def main(job_path: str, out_path: str) -> int:
    results, is_failed = {}, False
    for model in json.loads(Path(job_path).read_text())["models"]:
        part = Path(f"{out_path}.{model['name']}")
        child = subprocess.run(
            [sys.executable, __file__, job_path, model["name"], str(part)],
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if child.returncode == 0 and part.exists():
            results[model["name"]] = json.loads(part.read_text())
            part.unlink()
        else:
            is_failed = True
            results[model["name"]] = {
                "error": child.stderr[-4000:],
                "exit_status": child.returncode,
            }
        # After each model: a later crash keeps what is known.
        Path(out_path).write_text(json.dumps(results))
    return int(is_failed)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        serve_one(*sys.argv[1:])
    else:
        sys.exit(main(*sys.argv[1:]))
