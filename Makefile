# Everything runs in a virtual environment of its own, .venv.
#   make demo    sets up, then runs the study on the embedded default: no download of data or models
#   make test    sets up, then runs the tests
#   make lint    sets up, then checks style, format and types
#   make docs    sets up, then builds the API documentation into build/docs

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs clean

demo: .venv/installed-demo
	$(BIN)/influence experiment -c configs/demo.yaml

test: .venv/installed-test
	$(BIN)/python -m pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed-docs
	$(BIN)/pdoc -d google -o build/docs lightning_app modules datamodules influence_masking

.venv/installed-%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0] + ". Name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@

clean:
	rm -rf .venv
