# Two commands do all the set-up on a bare machine: `make test` and `make demo`.
# Both build .venv from the exact pins of constraints.txt, once, and build it again when the pins change.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Each core takes its share from first to last, and then of the others': what the tests of a file share is made once.
# One thread each: processes that wait for each other with two threads on two cores took ten times as long.
TOGETHER := -n auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install lint types test check slow cuda oldest demo results-small docs format clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## Build .venv: pinned dependencies, this package in editable form

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"retain needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -c constraints.txt -e ".[demo,vision,dev,docs,trl]"
	@touch $@

lint: $(INSTALLED)  ## Check style and formatting with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## Check types with mypy
	$(BIN)/mypy

test: lint types  ## Lint, types and the default tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TOGETHER)

check: test  ## The same as test

slow: $(INSTALLED)  ## The tests that train for longer or read real data
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(TOGETHER)

cuda: $(INSTALLED)  ## The tests that need a GPU, for a .venv whose torch has CUDA
	$(BIN)/python -m pytest -m cuda

oldest: build/oldest/.installed  ## What depends on other libraries, with the oldest versions that pyproject.toml allows
	build/oldest/bin/python -m pytest -m "versions and not slow" $$(grep -rl mark.versions tests)

build/oldest/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install -c constraints-oldest.txt -e ".[trl,vision]" hypothesis pytest pytest-timeout
	@touch $@

demo: $(INSTALLED)  ## A stream of real tasks under three methods; QUICK=1 for the short one
	$(BIN)/retain demo $(if $(QUICK),--quick)

# Tuned keywords as the tables have them, so that nothing is tried again.
SMALL := joint per-task sequential ewc-lora:strength=10 ewc:strength=10000 eblora:energy=0.95 share:components=16

results-small: $(INSTALLED)  ## The quick part of the measured tables again, into benchmarks/results and runs/results-small
	PYTHON=$(BIN)/python scripts/fetch_optional_data.sh mnist fashion-mnist
	OMP_NUM_THREADS=1 $(BIN)/python examples/mnist.py --seeds 0 1 2
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ablations --again --jobs 2
	$(BIN)/python -m benchmarks.comparison --streams text --to runs/results-small
	$(BIN)/retain compare runs/results-small/text.yaml --budget small --tries 1 --seeds 1 --jobs 2 --methods $(SMALL)

docs: $(INSTALLED)  ## The pages as a site in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(INSTALLED)  ## Let ruff fix and format everything
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove .venv and caches, keep runs
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
