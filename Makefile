# `make demo` and `make test` need nothing but Python 3.11 and make; everything else goes into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Processes that tests run in, and the test that says in seconds whether they are worth a try.
WORKERS ?= 2
SMOKE := tests/test_smoke.py
# The stock PyTorch-to-LiteRT converter, which docs/quantization.md compares with, has an environment of its own (2 GB).
STOCK := build/stock_litert

.DEFAULT_GOAL := help
.PHONY: help demo test test-random test-processors lint types check format tables training clean

help:
	@echo "make demo    train, export, check, plan and profile a network on real scans of digits"
	@echo "make test    run the tests"
	@echo "make test-random  run tests of properties on new random examples (SEED=n repeats a run)"
	@echo "make test-processors  run int8 files on emulated processors (QEMU), beside the reference"
	@echo "make check   what CI runs: lint, types, test-processors, test"
	@echo "make format  put the code into its standard form"
	@echo "make tables  measure again what docs/ shows (needs FIREBOX_DATA; about two and a half hours)"
	@echo "make training train again what docs/training.md compares (half a day)"
	@echo "make clean   remove .venv and what was built"

$(READY): pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(STOCK)/.ready: benchmarks/stock_litert/requirements.txt
	$(PYTHON) -m venv $(STOCK)
	$(STOCK)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

demo: $(READY)
	$(BIN)/firebox demo --out build/demo

# The smoke test first: where nothing works, it ends here.
test: $(READY)
	$(BIN)/python -m pytest -q --no-header $(SMOKE)
	$(BIN)/python -m pytest -n $(WORKERS) --ignore $(SMOKE)

test-random: $(READY)
	$(BIN)/python tests/random_run.py $(if $(SEED),--seed $(SEED))

# QEMU's user mode is installed where that needs no question; without it only this machine's processor is tried.
test-processors: $(READY)
	@if ! command -v qemu-x86_64-static >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  { apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-user-static; } >/dev/null \
	    || echo "qemu-user-static could not be installed" >&2; \
	fi
	$(BIN)/python benchmarks/processors.py --test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/basedpyright

check: lint types test-processors test

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tables: $(READY) $(STOCK)/.ready
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/fit.py
	$(BIN)/python benchmarks/quantization.py --stock $(STOCK)/bin/python
	$(BIN)/python benchmarks/effort.py
	$(BIN)/python benchmarks/qat.py
	$(BIN)/python benchmarks/precisions.py
	$(BIN)/python benchmarks/zoo.py
	$(BIN)/python benchmarks/weight_ranges.py
	$(BIN)/python benchmarks/processors.py
	$(BIN)/python benchmarks/resume.py

training: $(READY)
	$(BIN)/python benchmarks/training.py

clean:
	rm -rf $(VENV) build dist *.egg-info
