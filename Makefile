# Everything runs in .venv, which is made on first use. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HOST ?= 127.0.0.1
PORT ?= 8000

.DEFAULT_GOAL := help
.PHONY: help install demo serve test chaos lint bench peers mlflow audit sbom clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(STAMP) ## Make .venv with pinned dependencies

demo: $(STAMP) ## Run the whole main job on the embedded digits data
	$(BIN)/orchestrator run examples/digits.yaml
	@echo
	@echo "Next, in this terminal:   make serve"
	@echo "then, in another one:     curl -s http://$(HOST):$(PORT)/v2/models/mix/infer -d @examples/digit.json"

serve: $(STAMP) ## Serve the demo's ensembles until Ctrl-C
	@$(BIN)/orchestrator serve digits --host $(HOST) --port $(PORT)

lint: $(STAMP) ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy orchestrator deployments jobs tests examples benchmarks

test: lint ## Lint, types, architecture tests and the whole suite (QUICK=1: without the slow ones)
	$(BIN)/python -m pytest -m "not ray and not cluster$(if $(QUICK), and not slow)" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "(ray or cluster)$(if $(QUICK), and not slow)" -n 2 --dist loadfile

chaos: $(STAMP) ## Lose nodes, drivers, heads and connections on clusters of this machine (about half an hour)
	$(BIN)/python -m pytest -m cluster tests/cluster tests/search/test_faults.py tests/search/test_faults_of_real_trials.py

bench: $(STAMP) ## Measure eager, lowered and compiled execution (about 2 minutes, a quiet machine)
	$(BIN)/python -m benchmarks.execution --json docs/results/execution.json

peers: ## Make .venv-peers with the tools that benchmarks compare with
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement benchmarks/peers/requirements.txt

mlflow: $(STAMP) ## Make .venv-mlflow with the server that tests/tracking/test_mlflow.py talks to
	test -x .venv-mlflow/bin/python || $(PYTHON) -m venv .venv-mlflow
	.venv-mlflow/bin/python -m pip install --quiet 'mlflow>=3,<4'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mlflow]'

.venv-audit/.installed:
	test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet 'cyclonedx-bom>=7,<8' 'pip-audit>=2.9,<3'
	@touch $@

audit: .venv-audit/.installed ## Compare the pinned versions with known weaknesses (needs the network)
	.venv-audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

sbom: $(STAMP) .venv-audit/.installed ## Write dist/sbom.json, what is installed in .venv (CycloneDX)
	mkdir -p dist
	.venv-audit/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible --of JSON -o dist/sbom.json

clean: ## Remove environments and caches; runs and their store stay
	rm -rf $(VENV) .venv-audit .venv-mlflow .venv-peers .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
