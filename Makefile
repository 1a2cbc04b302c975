# `make demo` and `make test` need nothing but Python 3.11: each makes .venv when it is missing or out of date.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Twice quiet: errors only.
PIP_INSTALL := $(BIN)/pip install --quiet --quiet --disable-pip-version-check -c constraints.txt

# Two processes of one thread each: threads of several processes get into each other's way on small products.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# One stamp for each set of extras; [dev] includes the others, and [bench] includes [run].
RUN_STAMP := $(VENV)/.installed-run
BENCH_STAMP := $(VENV)/.installed-bench
DEV_STAMP := $(VENV)/.installed-dev
# Ray is as large as all of them, so that it comes in only for its own tests.
RAY_STAMP := $(VENV)/.installed-ray

# Triton alone is larger than all the rest, so that its tests have an environment of their own.
TRITON_VENV := .venv-triton
TRITON_STAMP := $(TRITON_VENV)/.installed
TRITON_INSTALL := $(TRITON_VENV)/bin/pip install --quiet --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo bench test test-slow test-triton test-ray lint docs format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUN_STAMP) ## Compress a small network and show what came of it; ARGS='...' go to `adntn compress`
	@$(BIN)/adntn compress $(ARGS)

bench: $(BENCH_STAMP) ## Measure against dense torch and peers, half an hour on two quiet cores; ARGS='--help' lists options
	@$(BIN)/python -m benchmarks.speed $(ARGS)

test: $(DEV_STAMP) ## Run the quick tests; ARGS='...' go to pytest
	$(PYTEST) -m "not slow" $(ARGS)

# pytest exits with 5 when it finds no test: no slow tests yet is no failure.
test-slow: $(DEV_STAMP) ## Run the slow tests; ARGS='...' go to pytest
	$(PYTEST) -m slow $(ARGS) || test $$? -eq 5

test-triton: $(TRITON_STAMP) ## Run the tests of the Triton kernels, under Triton's interpreter; no GPU is needed
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 ADNTN_REQUIRE_TRITON=1 $(TRITON_VENV)/bin/python -m pytest -v \
		tests/execution/test_kernels_triton.py $(ARGS)

test-ray: $(RAY_STAMP) ## Run the tests of block-wise fits on a Ray cluster of two workers on this machine
	OMP_NUM_THREADS=1 ADNTN_REQUIRE_RAY=1 $(BIN)/python -m pytest -v tests/training/stages/test_blocks_ray.py $(ARGS)

lint: $(DEV_STAMP) ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DEV_STAMP) ## Build the site into site/; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(DEV_STAMP) ## Put the code into the house format, with the fixes that ruff is sure of
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean: ## Remove the environment, caches and builds; runs/ stays
	rm -rf $(VENV) $(TRITON_VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(RUN_STAMP): pyproject.toml constraints.txt
	@echo "Installing adntn[run] into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) -e '.[run]'
	@touch $@

$(BENCH_STAMP): pyproject.toml constraints.txt
	@echo "Installing adntn[bench] into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) -e '.[bench]'
	@touch $@ $(RUN_STAMP)

$(DEV_STAMP): pyproject.toml constraints.txt
	@echo "Installing adntn[dev] into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(RUN_STAMP) $(BENCH_STAMP)

$(RAY_STAMP): $(DEV_STAMP) constraints-ray.txt
	@echo "Installing adntn[ray] into $(VENV)"
	@$(PIP_INSTALL) -c constraints-ray.txt -e '.[ray]'
	@touch $@

# A CUDA build of torch brings a Triton of its own, which then is the one to test.
$(TRITON_STAMP): pyproject.toml constraints.txt constraints-triton.txt
	@echo "Installing adntn[test] and Triton into $(TRITON_VENV)"
	@$(PYTHON) -m venv $(TRITON_VENV)
	@$(TRITON_INSTALL) -e '.[test]'
	@$(TRITON_VENV)/bin/python -c 'import triton' 2>/dev/null || $(TRITON_INSTALL) -c constraints-triton.txt triton
	@touch $@
