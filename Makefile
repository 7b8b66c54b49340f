# Everything a newcomer needs: Python 3.11, venv and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-all lint format bench lock clean

setup: $(VENV)/.dev  ## the environment, as the lock has it

demo: $(VENV)/.runtime  ## the whole chain on real photographs; ends with runs/demo/report.html
	$(BIN)/era demo --out runs/demo

test: setup lint  ## one proof of each promise
	$(BIN)/pytest -m "not full"

test-all: setup  ## random kills, sweeps, bucket faults, browser, the users' day
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -qq -y chromium >/dev/null; }
	$(BIN)/pytest -m full

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## tables of ratios, kept in benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks

lock:  ## write both locks anew from pyproject.toml
	rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	.lock-venv/bin/pip install -q .
	.lock-venv/bin/pip freeze --exclude era-deblurring --exclude pip --exclude setuptools \
		| sed 's/+cpu$$//' | grep -v '^nvidia-' > requirements.lock
	.lock-venv/bin/pip install -q ".[dev]"
	.lock-venv/bin/pip freeze --exclude era-deblurring --exclude pip --exclude setuptools \
		| sed 's/+cpu$$//' | grep -v '^nvidia-' | grep -vxFf requirements.lock > requirements-dev.lock
	rm -rf .lock-venv

clean:
	rm -rf $(VENV) .lock-venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/.runtime: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.lock -r requirements-dev.lock
	touch $@
