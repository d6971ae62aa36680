# `make quickstart` shows what this project does, `make test` checks it, `make benchmarks` times its attacks beside others.
PYTHON ?= python3
VENV := .venv

.PHONY: quickstart test benchmarks format clean

quickstart: $(VENV)/.installed
	$(VENV)/bin/defendpp quickstart

test: $(VENV)/.installed-test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pytest

benchmarks: $(VENV)/.installed-benchmarks $(VENV)/torchattacks/.installed
	$(VENV)/bin/python benchmarks/attacks.py

format: $(VENV)/.installed-test
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:
	rm -rf $(VENV) build dist

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "defendpp needs Python 3.11 or newer, not " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/pip install --disable-pip-version-check --quiet --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/pip install --disable-pip-version-check --quiet --editable '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-benchmarks: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/pip install --disable-pip-version-check --quiet --editable '.[benchmarks]'
	touch $@ $(VENV)/.installed

# Of its own, because torchattacks pins what other packages exclude; with the same torch, or times could not be compared.
$(VENV)/torchattacks/.installed: $(VENV)/.installed-benchmarks
	$(VENV)/bin/python -m venv $(VENV)/torchattacks
	$(VENV)/torchattacks/bin/pip install --disable-pip-version-check --quiet torchattacks==3.5.1 \
		torch==$$($(VENV)/bin/python -c 'import torch; print(torch.__version__.split("+")[0])')
	touch $@
