# `make demo` and `make test` need only Python 3.11 and make; everything else is installed into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The number of test processes, and a test of a few seconds that runs before all others.
WORKERS ?= 2
SMOKE := tests/test_smoke.py
# Emulators, and the compilers of the processors that they emulate; Debian's names.
EMULATION := qemu-user-static qemu-user qemu-system-arm gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-arm-none-eabi \
	libnewlib-arm-none-eabi clang lld nodejs
# The environment (2 GB) of the stock PyTorch-to-LiteRT converter, which docs/quantization.md compares firebox with.
STOCK := build/stock_litert

.DEFAULT_GOAL := help
.PHONY: help demo tour test test-random test-processors lint types docs check format tables training clean

help:
	@echo "make demo             train, export, check, plan and profile a network on real scans of digits"
	@echo "make tour             run examples/tour.py: from a tiny network to measured int8 files, in a minute"
	@echo "make test             run the tests"
	@echo "make test-random      run the property tests on new random examples (SEED=n repeats a run)"
	@echo "make test-processors  compare int8 files on emulated processors (QEMU) with the reference"
	@echo "make check            run what CI runs: lint, types, docs, test-processors, test"
	@echo "make docs             build the API reference and these pages as HTML in build/docs"
	@echo "make format           format the code"
	@echo "make tables           measure the tables in docs/ again (needs FIREBOX_DATA; about two and a half hours)"
	@echo "make training         train the networks of docs/training.md again (needs FIREBOX_DATA; half a day)"
	@echo "make clean            remove .venv and everything built"

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

tour: $(READY)
	$(BIN)/python examples/tour.py

# The smoke test comes first, to fail early when nothing works.
test: $(READY)
	$(BIN)/python -m pytest -q --no-header $(SMOKE)
	$(BIN)/python -m pytest -n $(WORKERS) --ignore $(SMOKE)

test-random: $(READY)
	$(BIN)/python tests/random_run.py $(if $(SEED),--seed $(SEED))

# Installs QEMU and cross compilers if that needs no password; without them, only this machine's processor is tested, here
# and in the tests of generated C.
test-processors: $(READY)
	@if ! { command -v qemu-x86_64-static && command -v qemu-aarch64 && command -v qemu-system-arm && \
	  command -v arm-none-eabi-gcc && command -v aarch64-linux-gnu-gcc && command -v clang && command -v wasm-ld && command -v node; } >/dev/null && \
	  command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  { apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(EMULATION); } >/dev/null \
	    || echo "$(EMULATION) could not be installed" >&2; \
	fi
	$(BIN)/python benchmarks/processors.py --test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/basedpyright

docs: $(READY)
	$(BIN)/python docs/api/build.py

check: lint types docs test-processors test

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tables: $(READY) $(STOCK)/.ready
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/fit.py
	$(BIN)/python benchmarks/quantization.py --stock $(STOCK)/bin/python
	$(BIN)/python benchmarks/effort.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/qat.py
	$(BIN)/python benchmarks/precisions.py
	$(BIN)/python benchmarks/zoo.py
	$(BIN)/python benchmarks/weight_ranges.py
	$(BIN)/python benchmarks/processors.py
	$(BIN)/python benchmarks/resume.py

training: $(READY)
	$(BIN)/python benchmarks/training.py --fresh

clean:
	rm -rf $(VENV) build dist *.egg-info
