"""Checkpoints, blocks and the bundled model: everything that knows an nn.Module or a file."""
