# `make` lists the targets. Everything runs in .venv, which `setup` makes from the pins in requirements/lock.txt.

PYTHON ?= python3
# A wheel index for torch alone, for example a CPU-only one. Empty: the default index.
TORCH_INDEX ?=
# Test processes; each computes on one thread.
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCK := requirements/lock.txt
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-quick test test-fast test-gpu check format format-check lint types arch clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install the pinned dependencies and davae

$(STAMP): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  v >= (3, 11) or sys.exit("davae needs Python 3.11 or newer; got %d.%d. Name another with make PYTHON=PATH." % v[:2])'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --index-url "$(TORCH_INDEX)" $$(grep '^torch==' $(LOCK)))
	$(BIN)/python -m pip install --quiet -r $(LOCK)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@

demo: $(STAMP) ## the whole method on the embedded pair, then an HTML report (9 minutes on 2 cores)
	$(BIN)/davae demo

demo-quick: $(STAMP) ## the same path in about a minute; too short for any claim
	$(BIN)/davae demo --quick

test test-fast: export OMP_NUM_THREADS = 1

test: $(STAMP) ## the test suite (at most 4 minutes on 2 cores)
	$(PYTEST) -m "not gpu"

test-fast: $(STAMP) ## the test suite without the slow tests
	$(PYTEST) -m "not gpu and not slow"

test-gpu: $(STAMP) ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

check: format-check lint types arch test ## what CI runs: format, lint, types, rooms, tests

format: $(STAMP) ## rewrite the code in the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --select I --fix .

format-check: $(STAMP) ## fail where the format differs
	$(BIN)/ruff format --check .

lint: $(STAMP) ## ruff's rules
	$(BIN)/ruff check .

types: $(STAMP) ## mypy, strict on the whole package
	$(BIN)/mypy

arch: $(STAMP) ## rooms: a module imports only from beneath its own
	$(BIN)/lint-imports

clean: ## remove caches and build outputs; .venv and runs stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +
