PYTHON ?= python3
VENV ?= .venv
FULL ?= .venv-full
export OMP_NUM_THREADS ?= 1
# Tests start Python many times: what it compiles is kept, also where the machine asks for nothing.
export PYTHONDONTWRITEBYTECODE =

.PHONY: setup test lint format check test-full clean

setup: $(VENV)/.dev

$(VENV)/.dev: pyproject.toml
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[dev]"
	@touch $@

test: setup
	@$(VENV)/bin/python -m pytest -q -n 2 --dist worksteal

lint: setup
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m ruff check .

format: setup
	$(VENV)/bin/python -m ruff format .
	$(VENV)/bin/python -m ruff check --fix .

check: lint test

# The lane of torchvision, torchaudio and open3d. It takes the package index's own builds of torch
# (several GB), even where pip knows of a local CPU build: only those can be imported together.
test-full: $(FULL)/.dev
	@$(FULL)/bin/python -m pytest -q -m full

$(FULL)/.dev: export PIP_CONFIG_FILE = /dev/null
$(FULL)/.dev: export PIP_FIND_LINKS =
$(FULL)/.dev: pyproject.toml
	@test -x $(FULL)/bin/python || $(PYTHON) -m venv $(FULL)
	$(FULL)/bin/python -m pip install --quiet torch==2.13.0 torchvision==0.28.0 torchaudio==2.11.0
	$(FULL)/bin/python -m pip install --quiet --editable ".[full,dev]"
	@touch $@

clean:
	rm -rf $(VENV) $(FULL) build dist .pytest_cache .ruff_cache .hypothesis
