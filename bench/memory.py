"""Peak memory against the size of the model: ours against llm-compressor's.

    python bench/memory.py [--layers 1 2 4] [--shape llama-1.1b]

A tool that holds one block at a time needs no more for forty layers than for four. The last column
shows it: the memory that one more layer costs, as a share of what that layer weighs.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from gptq_speed import write_random_tokens
from make_checkpoint import SHAPES, make_checkpoint
from side_by_side import PEER_NAME, Job, markdown, measure, mib, require_peer


def measure_shape(
    shape: dict[str, int], scheme: str, calibration: tuple[int, int], folder: Path
) -> tuple[int, int, int]:
    """Bytes of the checkpoint, our peak, the peer's peak. Leaves nothing in `folder`."""
    model = folder / "model"
    make_checkpoint(model, shape)
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    tokens = write_random_tokens(folder / "tokens.json", model, *calibration)
    job = Job(model=model, scheme=scheme, tokens=tokens)
    ours = measure(job.ours(folder / "ours"))
    peer = measure(job.peer(folder / "peer"))
    for made in ("model", "ours", "peer"):
        shutil.rmtree(folder / made)
    return size, ours.peak_bytes, peer.peak_bytes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="llama-1.1b")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--scheme", default="W4A16_g128")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    args = parser.parse_args()
    require_peer()
    rows, before = [], None
    for layers in args.layers:
        shape = SHAPES[args.shape] | {"layers": layers}
        with tempfile.TemporaryDirectory() as folder:
            found = measure_shape(shape, args.scheme, (args.samples, args.tokens), Path(folder))
        size, ours, peer = found
        growth = ["", ""]
        if before:
            growth = [f"{(now - then) / (size - before[0]):.2f}"
                      for now, then in zip(found[1:], before[1:], strict=True)]  # fmt: skip
        sizes = [str(layers), mib(size), mib(ours), mib(peer), f"{peer / ours:.2f}"]
        rows.append([*sizes, *growth])
        before = found
    print(f"gptq {args.scheme}, {args.shape}, {args.samples} x {args.tokens} tokens\n")
    columns = ["layers", "model, MiB", "ours, MiB", f"{PEER_NAME}, MiB", f"{PEER_NAME} / ours"]
    print(markdown([*columns, "ours, growth", f"{PEER_NAME}, growth"], rows))


if __name__ == "__main__":
    main()
