# The first `make reproduce` or `make test` installs everything into .venv.
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The first supported Python on the PATH.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null && echo $$p && break; done)

PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off

.PHONY: setup reproduce test test-full test-seeds test-shown cluster-test kill-test lint format lock readme
.DEFAULT_GOAL := reproduce

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml requirements.lock requirements.hashes
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 to 3.14 is required, but neither python3 nor python3.11 to python3.14 is one" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --no-deps -r requirements.hashes
	$(PIP) -c requirements.lock -e ".[dev]"
	touch $@

reproduce: setup
	$(BIN)/snakemake --cores all

# One worker per core; each takes whole files, in the order set by tests/conftest.py.
PYTEST := $(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST)

# Kernels for every GPU, shape and dtype; `make test` checks a sample of these.
test-full: setup
	$(PYTEST) -m full

# Every notebook that draws random numbers, at seeds 0 to 9; the workflow runs seed 0. Each run is one unit of work.
test-seeds: setup
	$(PYTEST) --dist load -m seeds

# Pages in a browser, tables in TeX; `make test` runs this where both are installed, and skips it elsewhere.
test-shown: setup
	@for tool in pdflatex "chromium chromium-browser google-chrome"; do \
		for name in $$tool; do command -v $$name >/dev/null && continue 2; done; \
		echo "error: this needs $$tool" >&2; exit 2; done
	$(PYTEST) --dist load -m shown

# Run the smoke scale through a real Slurm on this machine. Needs root, because it installs Debian's Slurm packages.
cluster-test: setup
	$(PIP) -c requirements.lock -e ".[slurm]"
	$(BIN)/python -m tests.cluster.run

# Kill the workflow at 30 random moments, and compare its results with those of a build without kills.
kill-test: setup
	rm -rf results/kill-test
	$(BIN)/python -m tests.kills.run --folder results/kill-test --csv results/reference/kills.csv

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

# Needs uv. The pins are the same for all supported platforms and Python versions. The set-up checks the hash of each
# package but torch, triton and what only they need: a machine may have a build of its own of these.
COMPILE := uv pip compile --universal --fork-strategy fewest --python-version 3.11 --no-header --no-annotate --quiet
lock:
	$(COMPILE) --extra dev --extra slurm --extra tensorboard -o requirements.lock pyproject.toml
	printf 'torch\ntriton\n' | $(COMPILE) --extra dev -c requirements.lock --excludes /dev/stdin --generate-hashes \
		-o requirements.hashes pyproject.toml

# Update the generated parts of README.md and docs/ from committed results, settings and the Snakefile.
REFERENCE ?= laptop-epyc
readme: setup
	$(BIN)/ddl readme --name $(REFERENCE)
