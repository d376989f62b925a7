# Two commands do all the set-up on a fresh machine with Python 3.11 or later: make demo, make test.
PYTHON ?= python3
DEV := .venv
BASE := .venv-base
BIN := $(DEV)/bin
export BASE_PYTHON := $(CURDIR)/$(BASE)/bin/python
export MPLBACKEND := Agg

.PHONY: demo test lint unit system slow kill soak gpu docs sbom clean

demo: $(BASE)/.ready
	$(BASE)/bin/rcm-daemon demo

test: lint unit system

lint: $(DEV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(DEV)/.ready
	$(BIN)/python -m pytest tests/unit

system: $(DEV)/.ready $(BASE)/.ready
	$(BIN)/python -m pytest tests/system

slow: $(DEV)/.ready $(BASE)/.ready
	$(BIN)/python -m pytest tests -m slow --timeout 7200

gpu: $(DEV)/.ready
	$(BIN)/python -m pytest tests -m gpu

# kill -9 of the daemon and of its worker at random moments of acknowledged streams: what is lost, how long it takes.
N ?= 500
kill: $(DEV)/.ready
	PYTHONPATH=tests:tests/system:tests/unit/bundle $(BIN)/python tests/system/kills.py $(N)

# The highest rate that is sustained, three instruments, restless and deaf subscribers: memory, descriptors, losses.
MINUTES ?= 30
soak: $(DEV)/.ready
	PYTHONPATH=tests:tests/system:tests/unit/bundle $(BIN)/python tests/system/soak.py $(MINUTES)

# What is generated and committed: schemas and the command-line reference; tests fail when they are stale.
docs: $(DEV)/.ready
	$(BIN)/rcm-daemon schema --out deploy/schemas
	$(BIN)/python -m tests.command_line > docs/command-line.md
	$(BIN)/python -m tests.hazards

# What the daemon is made of, as CycloneDX: the packages of its own environment, and the model that comes along.
sbom: $(DEV)/.ready $(BASE)/.ready
	$(BIN)/python deploy/sbom.py $(BASE)/bin/python dist/rcm-daemon.cdx.json

# The daemon's own environment: no torch, no test tools.
$(BASE)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BASE)
	$(BASE)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(DEV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[trainer,openvino,compressed,parquet,signing,dev]"
	touch $@

clean:
	rm -rf $(DEV) $(BASE) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
