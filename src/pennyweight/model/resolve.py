"""From what the user typed to a directory: a local path, the bundled model, or a Hub id."""

import os.path
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from pennyweight.core import CheckpointError

BUNDLED = Path(__file__).parents[1] / "pylm"
WEIGHTS_ELSEWHERE = (
    "*.bin",
    "*.pt",
    "*.pth",
    "*.gguf",
    "*.onnx",
    "*.h5",
    "*.msgpack",
    "original/*",
)


def resolve_model(model: str | Path, revision: str | None = None) -> Path:
    """A directory with the model's files. `pylm` is the model bundled with the package.

    A name that is no directory and looks like `owner/name` is fetched from the Hub (or its cache).
    """
    if str(model) == "pylm":
        return BUNDLED
    path = Path(model)
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name longer than a file system takes
        return path
    if os.path.exists(path):
        raise CheckpointError(f"{path}: expected a model directory, found a file")
    if str(model).count("/") != 1 or str(model).startswith((".", "/", "~")):
        raise CheckpointError(f"{path}: no such model directory, and not a Hub id (owner/name)")
    try:
        return Path(
            snapshot_download(
                str(model), revision=revision, ignore_patterns=list(WEIGHTS_ELSEWHERE)
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{model}: no such directory, and the Hub did not give a model of that name ({reason})"
        ) from None
