# make demo   the whole pipeline on a small shop, from nothing
# make test   every check that a change must pass
# PYTHON=...  another Python 3.11 or newer

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[.a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(INSTALLED) ## the whole pipeline on a small shop, from nothing
	@$(BIN)/ingest demo

.PHONY: test
test: lint ## lint, types, import directions and every test
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile

.PHONY: faults
faults: $(INSTALLED) ## cause every fault hundreds of times, and print what came of each (half an hour)
	FAULTS=all $(BIN)/python -m pytest -q --numprocesses 2 --dist worksteal ingestion_pipeline_tests/faults

.PHONY: safeguards
safeguards: $(INSTALLED) ## take each safeguard of the data away in turn, to see a test fail
	@$(BIN)/python -m ingestion_pipeline_tests.faults.safeguards

.PHONY: lint
lint: $(INSTALLED) ## style, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: wheel
wheel: $(INSTALLED) ## dist/*.whl
	$(BIN)/python -m build --wheel

.PHONY: .venv
.venv: $(INSTALLED) ## the virtual environment, with everything in it

$(INSTALLED): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
			"Name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into .venv: about 125 packages and 2 GB, two to three minutes."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
		-c constraints.txt -e '.[test]' \
		| awk '/^Collecting/ { printf "\r  fetching %d", ++n; fflush() } \
			/^Installing collected/ { printf "\r  installing %d packages\n", NF - 3; fflush() }'
	@touch $@

.PHONY: lock
lock: ## pin in constraints.txt what .venv holds now
	@$(BIN)/python -m pip freeze --all --exclude pip --exclude-editable > .venv/freeze.txt
	@{ sed -n '/^#/p' constraints.txt; sed -E 's/^(torch==[^+]*)\+.*/\1/' .venv/freeze.txt; } > .venv/lock.txt
	@cp .venv/lock.txt constraints.txt

.PHONY: clean
clean: ## remove .venv and what was built; the embedded database stays
	@rm -rf .venv build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@if [ -d .ingestion ]; then \
		echo ".ingestion (the embedded database and Dagster's history) is left alone;" \
			"make reset removes it."; fi

.PHONY: reset
reset: $(INSTALLED) ## stop the embedded database and remove it, with Dagster's history
	@$(BIN)/ingest down
	@rm -rf .ingestion
