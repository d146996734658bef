# make bench: the main job, on data inside a package. make test: all tests.
# make coverage, make fuzz and make long: branch coverage, 10,000 cases, a million steps.
# make docs: the site, in site/. make test-site: each of its pages in a browser.
# All make .venv and install into it; nothing else is needed on a fresh machine with Python 3.10+.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
ARGS ?=

.PHONY: bench test test-distributed test-site test-trainers coverage fuzz long gpu lint docs clean

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks continual $(ARGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --ignore tests/distributed --ignore tests/integrations \
		--ignore tests/site $(ARGS)

# 2 and 4 processes on loopback. Alone: on two cores they wait for each other for minutes.
test-distributed: $(VENV)/.installed
	$(BIN)/python -m pytest tests/distributed $(ARGS)

# Each page of the site in a headless Chromium; skipped, with the reason, where there is none.
test-site: $(VENV)/.docs
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[site]'
	$(BIN)/python -m pytest tests/site $(ARGS)

# Fails below 95 percent of the branches of sal_optim/. With the trainers, which their glue needs.
coverage: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[integrations]'
	$(BIN)/python -m pytest -n 2 --dist loadgroup --ignore tests/benchmarks --ignore tests/site \
		--cov --cov-report=term-missing --cov-fail-under=95 $(ARGS)

fuzz: $(VENV)/.installed
	SAL_OPTIM_FUZZ=10000 $(BIN)/python -m pytest -n 2 tests/optimizers/test_fuzz.py $(ARGS)

long: $(VENV)/.installed
	SAL_OPTIM_LONG=1000000 $(BIN)/python -m pytest -n 2 tests/training/test_long_runs.py $(ARGS)

# Real trainers and other packages' optimizers: installs them, which takes minutes.
test-trainers: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[integrations]'
	$(BIN)/python -m pytest tests/integrations $(ARGS)
	PYTHONPATH=tests/integrations/shim $(BIN)/python -m pytest tests/package/test_docs.py -k "trainers or loops or lora"

# Where there is a card (with a CUDA build of torch in .venv): its checks, then a table of timings.
# Stops at the first difference from a CPU.
gpu: $(VENV)/.installed
	$(BIN)/python -c "import torch; print(torch.__version__, torch.cuda.get_device_name())"
	$(BIN)/python -m pytest tests/optimizers/test_devices.py tests/optimizers/test_waits.py tests/training/test_modes.py $(ARGS)
	$(BIN)/python -m benchmarks speed --device cuda --sizes 1e5,1e6,1e7,1e8

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Needs no network once it is installed. A link to nowhere is an error (not with --quiet).
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench,test,dev]'
	touch $@

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .ruff_cache .pytest_cache results
