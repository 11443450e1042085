.PHONY: setup test quick lint format lock verl-recipe

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
	.venv/bin/shellcheck run_justrl.sh scripts/*.sh tests/system_packages.sh .ci/run

format: setup
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

# Writes build/verl-recipe/justrl, this recipe as a folder of verl-recipe.
verl-recipe: setup
	$(PYTHON) -m recipe.verl_recipe.generate

# Resolves requirements/*.in again. FIND_LINKS: where the +cpu build of torch is listed.
LOCK := uv pip compile --quiet --no-strip-extras --annotation-style line --no-emit-find-links \
  --custom-compile-command "make lock; install with --no-deps, as run_justrl.sh does: the file is complete"
# One file serves Python 3.11 and 3.12: the same versions resolve for both, or the second line fails.
CPU = requirements/cpu.in --override requirements/cpu-overrides.txt --find-links $(FIND_LINKS) \
  --python-platform x86_64-manylinux_2_28
FIND_LINKS ?= https://download.pytorch.org/whl/cpu/torch/
lock:
	$(LOCK) $(CPU) --python-version 3.11 -o requirements-cpu.txt
	$(LOCK) $(CPU) --python-version 3.12 -c requirements-cpu.txt -o requirements-cpu.312.txt
	diff <(grep -o '^[^ ]*==[^ ]*' requirements-cpu.txt) <(grep -o '^[^ ]*==[^ ]*' requirements-cpu.312.txt)
	rm requirements-cpu.312.txt
	$(LOCK) requirements/gpu.in --universal --python-version 3.10 -o requirements.txt
