# Two commands on a fresh machine: `make demo` and `make test`. Both install into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check format clean

# The main job: fine-tune the bundled OPT on the bundled Snips commands, 5 devices, fading, noise,
# epsilon 8; then the same without privacy and noise, as the second line of the table.
demo: $(VENV)/.server
	$(BIN)/pairzero run snips --compare

test: $(VENV)/.dev
	$(MAKE) check
	$(BIN)/python -m pytest

# What pre-commit and CI run on every change.
check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pairzero needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.server: pyproject.toml $(VENV)/.created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[server]'
	touch $@

# torch comes first and pinned, so that the other packages find it and fetch no other build. Where
# the index offers a CPU-only build under that version, that is the one to have.
$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.server

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
