.PHONY: setup test quick lint format lock lock-next verl-recipe

SHELL := /bin/bash
PYTHON := .venv/bin/python
# Starting a run is one process importing after the other: on two cores two files at once take little longer than one.
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder

setup:
	./run_justrl.sh --setup-only

test:
	JUSTRL_TEST_PACKAGES=tests/requirements.txt ./run_justrl.sh --setup-only
	tests/system_packages.sh
	$(PYTHON) -m pytest $(PARALLEL)

quick: setup
	$(PYTHON) -m pytest $(PARALLEL) -m "not slow"

lint: setup
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	PATH=.venv/bin:$$PATH shellcheck run_justrl.sh scripts/*.sh tests/system_packages.sh .ci/run

format: setup
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

# Writes build/verl-recipe/justrl, this recipe as a folder of verl-recipe.
verl-recipe: setup
	$(PYTHON) -m recipe.verl_recipe.generate

# Resolve requirements/*.in again, and the CPU packages with the newest verl and vLLM; see scripts/lock.sh.
lock:
	scripts/lock.sh

lock-next:
	scripts/lock.sh next
