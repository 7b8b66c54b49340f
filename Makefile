# Everything a newcomer needs: Python 3.11, venv and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-all test-cluster lint format bench docs lock sbom clean

setup: $(VENV)/.dev  ## the environment, as the lock has it

demo: $(VENV)/.runtime  ## the whole chain on real photographs; ends with runs/demo/report.html
	$(BIN)/era demo --out runs/demo

test: setup lint  ## one proof of each promise
	$(BIN)/pytest -m "not full and not cluster"

# program:package; what is there already, from elsewhere than apt perhaps, is left alone
PROGRAMS := chromium:chromium exiftool:libimage-exiftool-perl pngcheck:pngcheck tiffinfo:libtiff-tools npm:npm

test-all: setup  ## random kills, sweeps, bucket faults, browser, the users' day
	@missing=; for both in $(PROGRAMS); do \
		command -v $${both%:*} >/dev/null || missing="$$missing $${both#*:}"; done; \
	test -z "$$missing" || { apt-get update -qq && apt-get install -qq -y $$missing >/dev/null; }
	$(BIN)/pytest -m full

test-cluster: setup  ## on the Kubernetes cluster that KUBECONFIG names, with KubeRay and the image
	$(BIN)/pytest -m "cluster and not lost_node and not policy and not kueue" tests/cluster

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

docs: setup  ## write the reference pages that come from the code
	$(BIN)/python docs/generate.py

# uv resolves for Python 3.11 and later on every platform; the locks keep Linux. The CUDA libraries
# of torch's public wheels go to a lock of their own, which requirements.lock includes.
NAMES = /^[a-z0-9]/
COMPILE = $(LOCK)/bin/uv pip compile -q pyproject.toml --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate $(LOCK_OPTIONS)
LOCK := .lock-venv
lock:  ## write the locks from pyproject.toml, keeping the versions they have (LOCK_OPTIONS=-U)
	rm -rf $(LOCK) && $(PYTHON) -m venv $(LOCK) && $(LOCK)/bin/pip install -q uv
	cat requirements.lock requirements-cuda.lock | grep -v '^-r' > $(LOCK)/runtime.txt
	cat $(LOCK)/runtime.txt requirements-dev.lock > $(LOCK)/dev.txt
	$(COMPILE) -o $(LOCK)/runtime.txt
	$(COMPILE) --extra dev -o $(LOCK)/dev.txt
	awk '$(NAMES) {skip = /^(nvidia-|cuda-|triton)|win32/} !skip' $(LOCK)/runtime.txt > requirements.lock
	echo '-r requirements-cuda.lock' >> requirements.lock
	awk '$(NAMES) {keep = /^(nvidia-|cuda-|triton)/} keep' $(LOCK)/runtime.txt > requirements-cuda.lock
	awk 'NR == FNR {if ($(NAMES)) known[$$1]; next} $(NAMES) {skip = ($$1 in known) || /win32/} !skip' \
		$(LOCK)/runtime.txt $(LOCK)/dev.txt > requirements-dev.lock
	rm -rf $(LOCK)

sbom:  ## sbom.json: what the image's environment consists of, with hashes (CycloneDX)
	rm -rf $(LOCK) && $(PYTHON) -m venv $(LOCK) && $(LOCK)/bin/pip install -q cyclonedx-bom
	$(LOCK)/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
		-o sbom.json requirements.lock
	rm -rf $(LOCK)

clean:
	rm -rf $(VENV) $(LOCK) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/.runtime: requirements.lock requirements-cuda.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes \
		-r requirements.lock -r requirements-dev.lock
	touch $@
