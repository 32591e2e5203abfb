# `make reproduce` and `make test` set everything up in .venv on their first call.
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The first Python on the PATH that the package supports.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null && echo $$p && break; done)

.PHONY: setup reproduce test test-full cluster-test lint format lock readme
.DEFAULT_GOAL := reproduce

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 to 3.14 is needed, none of python3, python3.11 ... is one" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c requirements.lock -e ".[dev]"
	touch $@

reproduce: setup
	$(BIN)/snakemake --cores all

# A worker for each core takes whole files, in the order that tests/conftest.py puts them in.
PYTEST := $(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST)

# Kernels for every GPU, shape and dtype, of which `make test` takes a sample.
test-full: setup
	$(PYTEST) -m full

# The smoke scale through a real Slurm on this machine; installs Debian's packages of it, so it needs root.
cluster-test: setup
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c requirements.lock -e ".[slurm]"
	$(BIN)/python -m tests.cluster.run

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/snakefmt --check Snakefile
	$(BIN)/python tests/lint_snakefile.py

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/snakefmt Snakefile

# Needs uv; the pins are the same for every platform and Python that the package supports.
lock:
	uv pip compile --universal --fork-strategy fewest --python-version 3.11 \
		--extra dev --extra slurm --extra tensorboard pyproject.toml \
		-o requirements.lock --no-header --no-annotate --quiet

# The tables and the picture of the workflow in README.md, from committed results and from the Snakefile.
REFERENCE ?= laptop-epyc
readme: setup
	$(BIN)/ddl readme --name $(REFERENCE)
