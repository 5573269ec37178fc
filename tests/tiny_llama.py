"""A Llama of two thousand random weights that reads bytes, saved as a model directory."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.byte_tokenizer import BOS, byte_tokenizer


def save_tiny_llama(folder: Path, *, seed: int = 0, noise: float = 0.0) -> Path:
    """Models of one seed are alike but for the noise added to every weight. 64 positions."""
    config = LlamaConfig(
        vocab_size=BOS + 1,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=BOS,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
