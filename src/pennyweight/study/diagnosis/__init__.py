"""Where a quantized model loses, and what to try next."""
