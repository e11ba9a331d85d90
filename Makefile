# Every target sets up what it needs: `make demo` and `make test` work on a machine that has only Python and g++.

PYTHON ?= python3
TORCH ?= torch==2.13.0
# One process per core, each test file in one of them, in the order of tests/conftest.py. Tests use one thread each.
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find csrc tests \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) 2>/dev/null)

PACKAGE := pyproject.toml setup.py $(wildcard unfoldconv/_build/*.py) $(filter csrc/%,$(NATIVE))

# What an edit is most likely to break: values and derivatives of every op and module, on the best instruction set. What
# is built, compiled, exported, emulated, or spread over processes is for `make test`.
QUICK := $(addprefix tests/,ops nn $(patsubst %,cpu/test_%.py,engines depthwise grouped patches))

.PHONY: help setup test test-quick lint format wheel demo bench gpu-check clean

help:
	@echo 'setup   make $(VENV) with torch, the tools and this package in place'
	@echo 'test    run every test'
	@echo 'test-quick  run those of values and derivatives'
	@echo 'lint    check style and types'
	@echo 'format  rewrite the sources in the house style'
	@echo 'wheel   build dist/*.whl'
	@echo 'demo    train a small network on handwritten digits'
	@echo 'bench   time the layers beside torch'
	@echo 'gpu-check  build, test, check and time on a GPU, with the torch of PYTHON and no network'
	@echo 'clean   remove what was built, except $(VENV)'

setup: $(VENV)/.package

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python must be 3.11 or newer, but got: $$($(PYTHON) --version); set PYTHON=python3.11 or the like"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install 'pip>=25.1'  # knows dependency groups
	$(BIN)/python -m pip install '$(TORCH)'
	touch $@

$(VENV)/.requirements: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --group dev
	touch $@

$(VENV)/.package: $(VENV)/.requirements $(PACKAGE)
	$(BIN)/python -m pip install --no-build-isolation -e .
	touch $@

# The same for the demo alone: few requirements and, unless UNFOLDCONV_CUDA says otherwise, no CUDA code for a torch that
# sees no GPU, because that takes minutes to compile.
$(VENV)/.demo: $(VENV)/.torch $(PACKAGE)
	$(BIN)/python -m pip install --group demo
	UNFOLDCONV_CUDA=$${UNFOLDCONV_CUDA:-$$($(BIN)/python -c 'import torch; print("auto" if torch.cuda.is_available() else 0)')} \
	  $(BIN)/python -m pip install --no-build-isolation -e .
	touch $@

test: setup
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

test-quick: setup
	UNFOLDCONV_TEST_ISAS=best $(BIN)/python -m pytest -q $(PYTEST_ARGS) $(QUICK)

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

demo: $(if $(wildcard $(VENV)/.package),setup,$(VENV)/.demo)
	$(BIN)/python examples/train_digits.py

bench: setup
	$(BIN)/python -m benchmarks layers

# No setup: the machine may be offline, and its torch the one to test with.
gpu-check:
	$(PYTHON) tests/cuda/gpu/check.py

clean:
	rm -rf build dist *.egg-info unfoldconv/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f $(VENV)/.package $(VENV)/.demo
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
