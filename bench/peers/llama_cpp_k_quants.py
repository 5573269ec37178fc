"""llama.cpp's mixed K-quants (Q4_K_M, Q3_K_M, Q2_K), with an importance matrix.

.venv-peers/llama_cpp/bin/python bench/peers/llama_cpp_k_quants.py MODEL DENSE --bits 4 \\
    --calibrate tokens.json

K-quants want rows of a multiple of 256 weights; for others llama.cpp takes a type of 32 weights a
block by itself, and the bits printed are those of what it took. The importance of a column is its
mean squared input over the calibration tokens, as llama.cpp's own tool has it. Rows are not
permuted for its rotary embedding: the file is quantized and read back, never run, and every row is
rounded by itself.
"""

import ctypes
import json
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
from common import Request, linears, request

TYPES = {4: llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, 3: llama_cpp.LLAMA_FTYPE_MOSTLY_Q3_K_M,
         2: llama_cpp.LLAMA_FTYPE_MOSTLY_Q2_K}  # fmt: skip


def names_of(model: torch.nn.Module) -> dict[str, str]:
    """Name of a linear -> its tensor's name in the file."""
    blocks = model.config.num_hidden_layers
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, blocks)
    found = {name: mapping.get_name(name) for name, _ in linears(model)}
    return {name: f"{short}.weight" for name, short in found.items()}


def write_plain(asked: Request, path: Path) -> None:
    model, config = asked.load(torch.float32), json.loads((asked.model / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tensor("token_embd.weight", model.get_input_embeddings().weight.detach().numpy())
    for name, short in names_of(model).items():
        writer.add_tensor(short, model.get_submodule(name).weight.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def importance(asked: Request) -> dict[str, np.ndarray]:
    """Name of a tensor -> mean squared input of each column, float32."""
    model, sums = asked.load(torch.float32), {}
    short = names_of(model)
    for name, linear in linears(model):
        sums[short[name]] = torch.zeros(linear.in_features, dtype=torch.float64)

        def add(_, inputs, into=sums[short[name]]):
            into += inputs[0].double().square().sum((0, 1))

        linear.register_forward_pre_hook(add)
    with torch.inference_mode():
        for ids in asked.batches:
            model(ids)
    count = sum(map(len, asked.tokens))
    return {name: (total / count).float().numpy() for name, total in sums.items()}


def as_array(found: dict[str, np.ndarray]) -> ctypes.Array:
    """What `llama_model_quantize` takes: it ends with an entry that has no name, and points into
    `found`."""
    entries = (llama_cpp.llama_model_imatrix_data * (len(found) + 1))()
    for entry, (name, values) in zip(entries, found.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries


def main() -> None:
    asked = request(__doc__)
    found = importance(asked)
    imatrix = as_array(found)
    with tempfile.TemporaryDirectory() as folder:
        plain, quantized = Path(folder) / "plain.gguf", Path(folder) / "quantized.gguf"
        write_plain(asked, plain)
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread = TYPES[asked.bits], 1
        params.imatrix = ctypes.cast(imatrix, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
        failed = llama_cpp.llama_model_quantize(
            str(plain).encode(), str(quantized).encode(), params
        )
        if failed:
            raise SystemExit(f"llama_model_quantize returned {failed}")
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(quantized).tensors}
        weights, stored, count = {}, 0, 0
        for name, short in names_of(asked.load()).items():
            tensor = tensors[short]
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            weights[name] = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
            stored, count = stored + int(tensor.n_bytes), count + weights[name].numel()
    asked.save(weights, 8 * stored / count)


if __name__ == "__main__":
    main()
