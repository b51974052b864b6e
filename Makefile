# Every target works alone on a fresh clone that has Python >= 3.10 and pip: it makes .venv and installs what it needs.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet -c constraints/dev.txt
TORCH := $(shell sed -n '/^torch==/p' constraints/dev.txt)
PACKAGE := pyproject.toml constraints/dev.txt

DEMO = $(VENV)/bin/partwise demo
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS)

.DEFAULT_GOAL := help
.PHONY: help demo test slow network check lint types cover format docs bench bench-peers clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | awk -F ':.*## *' '{printf "  make %-11s %s\n", $$1, $$2}'

demo: $(VENV)/.stamp-run  ## a federated run on real data, and its report
	$(DEMO)

test: $(VENV)/.stamp-dev  ## unit tests, doctests and examples
	$(PYTEST)

slow: $(VENV)/.stamp-dev  ## the tests that take longer: kills at random moments, published comparisons
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow -n $(WORKERS) tests

network: $(VENV)-network/.stamp  ## the tests with real nodes over Flower and with Ray's actors, in an environment of their own
	OMP_NUM_THREADS=1 $(VENV)-network/bin/python -m pytest -m "slow or not slow" tests/deploy tests/runtimes/test_ray.py

check: lint types cover  ## what CI runs: format, lint, types, tests, coverage of at least 90 %

lint: $(VENV)/.stamp-dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

types: $(VENV)/.stamp-dev
	$(PY) -m mypy

cover: $(VENV)/.stamp-dev
	$(PYTEST) --cov --cov-report=term --cov-fail-under=90

format: $(VENV)/.stamp-dev  ## lay out the code and repair what can be repaired
	$(PY) -m ruff check --fix --exit-zero --quiet .
	$(PY) -m ruff format .

docs: $(VENV)/.stamp-docs  ## the documentation, as a web site in site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

bench: $(VENV)/.stamp-run  ## every benchmark; each prints machine, versions, commit, seed and spread
	@found=0; for file in benchmarks/[a-z]*.py; do \
	    test -f "$$file" || continue; found=1; echo "== $$file"; $(PY) "$$file" || exit 1; \
	done; test $$found = 1 || echo "there are no benchmarks yet"

bench-peers: $(VENV)/.stamp-run  ## Partwise beside other frameworks, each in its own environment; ARGS="--only pfl ..."
	$(PY) benchmarks/peers/compare.py $(ARGS)

clean:  ## remove the environment, caches and built files
	rm -rf $(VENV) $(VENV)-network benchmarks/peers/.envs site build dist .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis

# ---- environment: one stamp per layer, renewed when pyproject.toml or the constraints change ------------------------

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Partwise needs Python 3.10 or newer, got " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "No virtual environment could be made. On Debian and Ubuntu: apt install python3-venv"; exit 1; }

# The pinned torch by itself: resolved together with the rest, a newer and much larger build might be chosen.
$(VENV)/.stamp-torch: constraints/dev.txt | $(VENV)/bin/pip
	@echo "installing $(TORCH)"
	@$(PIP) "$(TORCH)"
	@touch $@

$(VENV)/.stamp-run: $(PACKAGE) $(VENV)/.stamp-torch
	@echo "installing partwise"
	@$(PIP) -e .
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-run
	@echo "installing the tools for tests and checks"
	@$(PIP) -e ".[dev]"
	@touch $@

$(VENV)-network/.stamp: pyproject.toml constraints/network.txt
	@$(PYTHON) -m venv $(VENV)-network
	@$(VENV)-network/bin/python -m pip --disable-pip-version-check install --quiet "$(TORCH)"
	@$(VENV)-network/bin/python -m pip --disable-pip-version-check install --quiet -c constraints/network.txt -e ".[dev,flower,ray]"
	@touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp-run
	@echo "installing the tools for the documentation"
	@$(PIP) -e ".[docs]"
	@touch $@
