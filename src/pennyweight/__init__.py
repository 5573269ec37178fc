"""Post-training quantization for language models. The verbs are in `pennyweight.api`."""

__version__ = "0.1.0"
