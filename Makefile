# Set-up keeps its environment in .venv; nothing outside this folder is changed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
PYTEST := $(BIN)/python -m pytest -q -n 2

.PHONY: setup demo test test-shapes test-slow test-vllm check fix bench docs peers clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt tools/setup.sh
	@sh tools/setup.sh "$(PYTHON)"
	@touch $@

demo: $(STAMP)
	@$(BIN)/pennyweight demo -o demo

test: $(STAMP)
	$(PYTEST)

# The same suite with every signature checked while it runs, shapes included: three times as long.
test-shapes: $(STAMP)
	$(PYTEST) --jaxtyping-packages=pennyweight,beartype.beartype

test-slow: $(STAMP)
	$(PYTEST) -m slow

test-vllm: $(STAMP)
	sh tools/setup_vllm.sh
	$(BIN)/python -m pytest -q -m vllm

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python tools/check_sizes.py
	$(BIN)/python tools/paste_help.py --check
	$(BIN)/python tools/list_methods.py --check
	$(PYTEST) --jaxtyping-packages=pennyweight,beartype.beartype

fix: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python tools/paste_help.py
	$(BIN)/python tools/list_methods.py

docs: $(STAMP)
	$(BIN)/python tools/paste_help.py
	$(BIN)/python tools/list_methods.py

peers:
	sh tools/setup_peers.sh

bench: $(STAMP)
	sh tools/setup_peers.sh llmcompressor
	$(BIN)/python bench/gptq_quality.py
	$(BIN)/python bench/gptq_speed.py
	$(BIN)/python bench/memory.py

clean:
	rm -rf .venv .venv-vllm .venv-peers demo .pytest_cache .ruff_cache
