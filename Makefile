# make help lists the targets. PYTHON names the interpreter that the virtual environment is made with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Those that measure something on a GPU; the others measure the CPU or compute.
GPU_BENCHMARKS := train_step train_memory estimate

# Those of a finished run are given one by hand; the others are parts of a benchmark or what all share.
STANDALONE := $(filter-out $(patsubst %,benchmarks/%.py,common export_bits export_fusion export_memory export_parity peers samplers search),$(wildcard benchmarks/*.py))

.DEFAULT_GOAL := help
.PHONY: help install demo test check slow durability gpu gpu-studies bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv and install dynabert with everything the tests need

demo: install ## train and measure a small elastic model from nothing, in runs/demo
	$(BIN)/dynabert demo --out runs/demo

test: install check ## check, then the fast tests
	$(BIN)/pytest -n 2 -q

check: install ## style, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

slow: install ## the tests that take longer
	$(BIN)/pytest -q -m slow

durability: install ## the scripts of docs/reliability.md at full size: half an hour or more
	$(BIN)/python tests/durability/all.py --json docs/results/durability.json

gpu: install ## tests, benchmarks and full-data runs on a CUDA device, to docs/results/gpu-*.json; needs DYNABERT_DATA
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(BIN)/pytest -q -m gpu || exit 1; \
		for name in $(GPU_BENCHMARKS); do \
			echo "$$name"; \
			$(BIN)/python benchmarks/$$name.py --device cuda --json docs/results/gpu-$$name.json || exit 1; \
		done; \
		for task in sst2 mnli qnli; do runs/minilm.sh gpu-minilm-$$task $$task || exit 1; done; \
	else \
		echo 'no GPU: torch.cuda.is_available() is false, so nothing was run'; \
	fi

gpu-studies: install ## comparison, ablations, early exit, attention on a CUDA device, full data, 3 seeds; needs DYNABERT_DATA
	runs/gpu.sh

bench: install ## every script of benchmarks/ that needs no finished run
	@for script in $(STANDALONE); do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

clean: ## remove the environment and all caches; run folders stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone, so that a build chosen by hand (CPU or CUDA) is there before anything asks for one.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,dev]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "dynabert needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
			"name another: make install PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
