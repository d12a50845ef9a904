# Everything runs in a virtual environment of its own, .venv. Both distributions are installed from this folder by one pip
# command, so that pip looks for influence-masking on no index, and both are editable.
#   make demo    sets up, then runs the study on the embedded default: no download of data or models
#   make test    sets up, then runs the tests
#   make lint    sets up, then checks style, format and types
#   make docs    sets up, then builds the API documentation into build/docs
#   make test-tpu    the TPU's tests on XLA's CPU runtime, in an environment of its own, .venv-tpu (7 GB: torch 2.9 is
#                    a CUDA build on PyPI); TPU_ENV=FOLDER keeps it elsewhere

PYTHON ?= python3
BIN := .venv/bin
TPU_ENV ?= .venv-tpu

.PHONY: demo test test-tpu lint docs clean

demo: .venv/installed-demo
	$(BIN)/influence experiment -c configs/demo.yaml

test: .venv/installed-test
	$(BIN)/python -m pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-tpu: $(TPU_ENV)/installed
	PJRT_DEVICE=CPU $(TPU_ENV)/bin/python -m pytest tests/integration/test_xla.py callbacks/tests/test_xla.py

$(TPU_ENV)/installed: pyproject.toml callbacks/pyproject.toml
	$(PYTHON) -m venv $(TPU_ENV)
	$(TPU_ENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ./callbacks -e '.[tpu,test]'
	@touch $@

docs: .venv/installed-docs
	$(BIN)/pdoc -d google -o build/docs lightning_app modules datamodules influence_masking

.venv/installed-%: pyproject.toml callbacks/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0] + ". Name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ./callbacks -e '.[$*]'
	@touch $@

clean:
	rm -rf .venv .venv-tpu
