"""The schedule and the batches of the script that trains `pylm`."""

import importlib.util
from argparse import Namespace
from itertools import islice
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "tools" / "train_pylm.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_pylm", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def documents() -> list[torch.Tensor]:
    """One long document of tokens that count up, so a shift by one is a difference of one."""
    return [torch.arange(1_000_000)]


def test_targets_are_the_next_tokens(script, documents):
    for inputs, targets in script.batches(documents, Namespace(steps=20, seed=0)):
        assert inputs.numel() == script.STEP_TOKENS
        assert torch.equal(inputs + 1, targets)


def test_every_length_is_trained(script, documents):
    batches = script.batches(documents, Namespace(steps=1000, seed=0))
    lengths = [inputs.shape[1] for inputs, _ in batches]
    assert lengths == [256] * 700 + [512] * 200 + [1024] * 100


def test_a_longer_run_begins_like_a_shorter_one(script):
    documents = list(torch.arange(500_000).split(1000))
    short, long = (script.batches(documents, Namespace(steps=n, seed=0)) for n in (200, 400))
    for (a, _), (b, _) in zip(islice(short, 120), long, strict=False):
        assert torch.equal(a, b)
    assert script.rate_scale(120, 200) == script.rate_scale(120, 400) == 1


def test_rate_rises_and_falls_to_almost_nothing(script):
    scales = [script.rate_scale(step, 1000) for step in range(1, 1001)]
    assert scales[0] == pytest.approx(1 / script.WARMUP_STEPS)
    assert max(scales) == 1
    assert 0 < scales[-1] < 0.01


def test_a_checkpoint_of_a_falling_rate_belongs_to_one_length(script, tmp_path):
    path = tmp_path / "checkpoint.pt"
    layer = torch.nn.Linear(2, 2)
    begun = Namespace(size="1m", seed=0, steps=100)
    script.save_checkpoint(path, {"model": layer}, begun, done=70, elapsed_s=1.0)
    assert script.load_checkpoint(path, {"model": layer}, begun)["done"] == 70
    for other in (Namespace(size="1m", seed=0, steps=200), Namespace(size="2m", seed=0, steps=100)):
        with pytest.raises(SystemExit):
            script.load_checkpoint(path, {"model": layer}, other)


def test_a_stopped_run_goes_on_to_the_same_weights(script, tmp_path, monkeypatch):
    script.prepare_process(1)
    monkeypatch.setattr(script, "BLOCK_STEPS", 2)
    monkeypatch.setattr(script, "STEP_TOKENS", 64)
    monkeypatch.setattr(script, "STAGES", ((0.7, 16), (1.0, 32)))
    generator = torch.Generator().manual_seed(0)
    documents = list(torch.randint(0, script.VOCAB_SIZE, (2000,), generator=generator).split(100))
    options = Namespace(size="0.3m", seed=0, steps=6, no_compile=True)

    def train(checkpoint: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = script.LlamaForCausalLM(script.model_config(script.SIZES[options.size]))
        script.train(model, documents, options, tmp_path / checkpoint)
        return model.state_dict()

    whole = train("whole.pt")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(script, "log", interrupt)
        train("stopped.pt")
    for name, weight in train("stopped.pt").items():
        assert torch.equal(weight, whole[name]), name


def interrupt(message: str) -> None:
    raise KeyboardInterrupt(message)
