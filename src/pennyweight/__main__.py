"""`python -m pennyweight` is `pennyweight`."""

from pennyweight.cli.main import main

main()
