# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv and installs into it first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint kernels docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     train on handwritten digits, evaluate, export to ONNX, predict (about a minute after the install)"
	@echo "make test     lint, types, import direction and all tests"
	@echo "make lint     ruff, mypy, import direction"
	@echo "make kernels  build anew the compiled kernels whose sources changed"
	@echo "make docs     render the tables of README and docs from results/"

# uv resolves and installs in seconds where pip takes minutes. The stamp is renewed when the requirements change.
.venv/.ready: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -e '.[dev]'
	@touch $@ .venv/.kernels

# Kept as they are where nothing changed since the install above, which has built them.
NATIVE := $(wildcard src/starshift/*/*.cpp src/starshift/ops/*/*.cpp src/starshift/ops/*/*.h)
.venv/.kernels: .venv/.ready $(NATIVE)
	test -z "$$(find $(NATIVE) -newer .venv/.ready)" || $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

kernels: .venv/.kernels

demo: .venv/.kernels
	@rm -rf runs/demo
	$(BIN)/starshift train digits --out runs/demo --set hflip=0
	$(BIN)/starshift export runs/demo --format onnx
	$(BIN)/starshift eval runs/demo digits
	$(BIN)/starshift predict runs/demo docs/images/digits
	@echo "Open runs/demo/report.html in a browser for the whole picture."

# The runtimes of the export targets bring libraries of their own and get a process of their own.
test: lint .venv/.kernels
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --ignore tests/deploy --ignore tests/bench
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/deploy tests/bench

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.ready
	$(BIN)/python docs/render.py

clean:
	rm -rf .venv build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
