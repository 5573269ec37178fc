"""Models and data that tests of every folder share; nothing is downloaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import settings
from transformers import AutoConfig, AutoModelForCausalLM

# No deadline: the first example pays for imports, and cores are shared with other workers.
settings.register_profile("pennyweight", deadline=None, max_examples=10)
settings.load_profile("pennyweight")
torch.set_num_threads(1)  # pytest -n already uses every core; threads that wait for them spin

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 128,
}


def save_tiny_model(folder: Path, model_type: str = "llama", **config) -> Path:
    """A random model of this type in `folder`, seed 0, float32 and without a tokenizer.

    `config` is laid over TINY; `max_shard_size` goes to save_pretrained.
    """
    saving = {k: config.pop(k) for k in ("max_shard_size",) if k in config}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(TINY | config)))
    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder, **saving)
    transformers.logging.enable_progress_bar()
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """The directory of a random two-block Llama. Shared: copy it before changing anything."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def save_tiny(tmp_path) -> Callable[..., Path]:
    """save_tiny(model_type, **config): the directory of a model of the test's own."""
    count = iter(range(100))

    def save(model_type: str = "llama", **config) -> Path:
        return save_tiny_model(tmp_path / f"{model_type}-{next(count)}", model_type, **config)

    return save


@pytest.fixture(scope="session")
def token_file(tmp_path_factory) -> Path:
    """Eight sequences of 64 random token ids below 128: calibration data without a tokenizer."""
    ids = torch.randint(128, (8, 64), generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("tokens") / "tokens.json"
    path.write_text(json.dumps(ids.tolist()))
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of models and texts beside the repository; the test is skipped without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs {SHARED_DATA}")
    return SHARED_DATA
