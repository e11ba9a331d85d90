# Every target sets up what it needs: `make demo` and `make test` work on a machine that has only Python and g++.

PYTHON ?= python3
TORCH ?= torch==2.13.0
# One process per core, each test file in one of them, in the order of tests/conftest.py. Tests use one thread each.
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# What is built here, for the tests too, is free of warnings; `make lint` has nothing to compile for that.
export CXXFLAGS := $(CXXFLAGS) -Werror

VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find csrc tests \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) 2>/dev/null)

.PHONY: help setup test lint format wheel demo bench gpu-check clean

help:
	@echo 'setup   make $(VENV) with torch, the tools and this package in place'
	@echo 'test    run every test'
	@echo 'lint    check style and types, and that the code compiles without a warning'
	@echo 'format  rewrite the sources in the house style'
	@echo 'wheel   build dist/*.whl'
	@echo 'demo    train a small network on handwritten digits'
	@echo 'bench   time the layers beside torch'
	@echo 'gpu-check  build, test, check and time on a GPU, with the torch of PYTHON and no network'
	@echo 'clean   remove what was built, except $(VENV)'

setup: $(VENV)/.package

$(VENV)/.requirements: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python must be 3.11 or newer, but got: $$($(PYTHON) --version); set PYTHON=python3.11 or the like"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install '$(TORCH)'
	$(BIN)/python -m pip install -r requirements-dev.txt
	touch $@

$(VENV)/.package: $(VENV)/.requirements pyproject.toml setup.py $(wildcard unfoldconv/_build/*.py) $(filter csrc/%,$(NATIVE))
	$(BIN)/python -m pip install --no-build-isolation -e .
	touch $@

test: setup
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)

format: setup
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

wheel: setup
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps -w dist .
	@ls -l dist/*.whl

demo: setup
	$(BIN)/python examples/train_digits.py

bench: setup
	$(BIN)/python -m benchmarks layers

# No setup: the machine may be offline, and its torch the one to test with.
gpu-check:
	$(PYTHON) tests/gpu/check.py

clean:
	rm -rf build dist *.egg-info unfoldconv/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f $(VENV)/.package
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
