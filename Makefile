# Every target sets itself up on a machine that has only Python 3.11+, pip and make.
#   make quickstart   train a small self-ablating model and its baseline on the embedded stories, compare them
#   make test         the test suite
#   make test-system  tests of the whole: several processes, kills, documented examples from beginning to end
#   make test-fast    make test without its slow files
#   make lint         ruff and pyright
#   make torture      an hour of kills, full disks, damaged files and hostile input; ARGS='--count 0.1' for less
#   make docs         the site, in site/: guides, results, notebooks as they run, API reference
#   make bench        speed at the paper's shape
#   make clean        remove what these made
# PYTHON=python3.12 picks the interpreter that makes .venv; TEST_WORKERS=8 uses more cores.

PYTHON ?= python3
TEST_WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-system test-fast torture lint docs bench clean

help:
	@sed -n 's/^#   //p' Makefile

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is" \
	  "$$($(PYTHON) --version 2>&1), Python 3.11 or newer is needed; choose one with PYTHON=python3.12" >&2; exit 2; }
	@# Some systems ship Python without ensurepip: then the pip outside fills the new environment.
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear \
	  --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

# Large pages of memory, by which a CPU trains faster (docs/accelerators.md).
quickstart bench: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

quickstart: $(READY)
	$(BIN)/jaxablate quickstart $(ARGS)

PYTEST := $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test: $(READY)
	$(PYTEST) -m "not system and not browser"

test-system: $(READY)
	$(PYTEST) -m system

test-fast: $(READY)
	$(PYTEST) -m "not slow and not system and not browser"

torture: $(READY)
	cd tests && ../$(BIN)/python -m faults.torture $(ARGS)

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

$(VENV)/.ready-docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,docs]'
	@touch $@

docs: $(VENV)/.ready-docs
	$(BIN)/python docs/site/build.py

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache build dist site .cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
