# Everything runs from .venv, which is built from requirements.lock alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Much of what tests do is to wait for processes and time-outs, so two share a core.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(2 * os.cpu_count())')

.PHONY: run test check conformance experiments test-jssdk test-sydent test-synapse format lint types lock clean

run: $(VENV)
	$(BIN)/identity serve

test: $(VENV)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

check: lint types test

# Makes docs/conformance.md: every behaviour is switched off once, and a test must notice.
conformance: $(VENV)
	$(BIN)/python tests/conformance/run.py

# Faults made on purpose, against real processes. E="e18 e19" names some, QUICK=1 makes them small.
experiments: $(VENV)
	$(BIN)/python tests/experiments/run.py $(if $(QUICK),--quick) $(E)

# Against the real programs; each says what it needs if that is not there.
test-jssdk: $(VENV)
	$(BIN)/python tests/interop/jssdk/run.py

test-sydent: $(VENV)
	$(BIN)/python tests/interop/sydent/run.py

test-synapse: $(VENV)
	$(BIN)/python tests/interop/synapse/run.py

lint: $(VENV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)
	$(BIN)/mypy

format: $(VENV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The stamp is written last, so an interrupted install is done again.
$(VENV): $(VENV)/.installed
$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Resolves the newest versions that pyproject.toml allows. pip-tools lives in an environment of its own.
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet pip-tools
	$(VENV)-lock/bin/pip-compile --quiet --upgrade --extra dev --generate-hashes --no-emit-index-url \
		--no-emit-find-links --strip-extras --allow-unsafe --no-header --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) $(VENV)-lock $(VENV)-sydent $(VENV)-synapse tests/interop/jssdk/node_modules build *.egg-info .pytest_cache .mypy_cache .ruff_cache
