# Everything a newcomer needs: `make help` lists the targets. Needs python3 (3.11 or newer), its pip, and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

# LAPACK with two threads on a busy two-core machine measured 10 to 25 times slower than with one
# (eigh 2000 x 2000: 45 s against 1.6 s); parallel test workers make every machine a busy one.
export OPENBLAS_NUM_THREADS ?= 1

# One worker per core of the smallest machine meant. Whole files go to one worker: their tests share compiled functions.
TEST_FLAGS ?= -n 2 --dist loadfile

.PHONY: help install demo test slow doctest lint types docs examples clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

# A stamp per extra: `make demo` does not wait for what only the tests need. The pins act as constraints, so that
# one file serves all extras.
$(BIN)/installed-%: pyproject.toml requirements.txt | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.txt --editable '.[$*]'
	@touch $@

# Debian ships python3 without ensurepip; then the pip that is there puts one into the environment.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else f"chordflow needs Python 3.11 or newer, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
	  && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }

install: $(BIN)/installed-test ## Create .venv and install the package with what its tests need
demo: $(BIN)/installed-run ## Train on the bundled digits, compare with the theory, check its statements, write the report
	$(BIN)/chordflow run
	run=$$(ls -dt runs/digits-* | head -n 1) \
	  && $(BIN)/chordflow verify "$$run" data.samples=10 \
	  && page=$$($(BIN)/chordflow report "$$run") \
	  && echo "Open this page in a browser: file://$$PWD/$$page"
test: $(BIN)/installed-test ## Run all tests that take seconds
	$(PYTEST) $(TEST_FLAGS) -m "not slow"
slow: $(BIN)/installed-test ## Run the tests that take minutes, processes or disk
	$(PYTEST) $(TEST_FLAGS) -m slow
doctest: $(BIN)/installed-test ## Run the examples in the docstrings
	$(PYTEST) $(TEST_FLAGS) --doctest-modules src
lint: $(BIN)/installed-dev ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
types: $(BIN)/installed-dev ## Check types
	$(BIN)/pyright
docs: $(BIN)/installed-docs ## Build the documentation site into build/site, warnings being errors
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env --builder html docs build/site
	@echo "open build/site/index.html"
examples: $(BIN)/installed-docs ## Run the guided examples again and keep their outputs
	$(BIN)/python docs/examples/run.py
clean: ## Remove caches and build products, keep .venv and runs
	rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.v*' -type d -prune -exec rm -rf {} +
