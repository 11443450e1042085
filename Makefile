.PHONY: setup test quick lint format lock

PYTHON := .venv/bin/python
# Starting a run is one process importing after the other: on two cores two files at once take little longer than one.
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder

setup:
	./run_justrl.sh --setup-only

test: setup
	tests/system_packages.sh
	$(PYTHON) -m pytest $(PARALLEL)

quick: setup
	$(PYTHON) -m pytest $(PARALLEL) -m "not slow"

lint: setup
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	.venv/bin/shellcheck run_justrl.sh tests/system_packages.sh .ci/run

format: setup
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

# Resolves requirements/*.in again. FIND_LINKS: where the +cpu build of torch is listed.
LOCK := uv pip compile --quiet --no-strip-extras --annotation-style line --no-emit-find-links \
  --custom-compile-command "make lock; install with --no-deps, as run_justrl.sh does: the file is complete"
FIND_LINKS ?= https://download.pytorch.org/whl/cpu/torch/
lock:
	$(LOCK) requirements/cpu.in --override requirements/cpu-overrides.txt --find-links $(FIND_LINKS) \
	  --python-version 3.11 --python-platform x86_64-manylinux_2_28 -o requirements-cpu.txt
	$(LOCK) requirements/gpu.in --universal --python-version 3.10 -o requirements.txt
