# make bench: the main job, on data inside a package. make test: all tests.
# Both make .venv and install into it; nothing else is needed on a fresh machine with Python 3.10+.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
ARGS ?=

.PHONY: bench test test-distributed test-trainers lint clean

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks continual $(ARGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --ignore tests/distributed --ignore tests/integrations $(ARGS)

# 2 and 4 processes on loopback: on two cores these wait for each other for minutes.
test-distributed: $(VENV)/.installed
	$(BIN)/python -m pytest tests/distributed $(ARGS)

# Real trainers and other packages' optimizers: installs them, which takes minutes.
test-trainers: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[integrations]'
	$(BIN)/python -m pytest tests/integrations $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench,test,dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache results
