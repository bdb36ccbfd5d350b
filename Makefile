# Two commands: `make demo` and `make test`. Both make the virtual environment first, if it is not there.
#
#   make demo                   the main job on generated videos, about ten minutes on two CPU cores
#   make demo VIDEOS=folder     the same on your own videos, in class folders
#   make test                   lint, types, tests
#   DALI=cu12 make demo         for a torch built for CUDA 12 (the default is cu13; both run without a GPU)

PYTHON ?= python3
DALI ?= cu13
VENV ?= .venv
VIDEOS ?=
OUT ?= runs/demo$(if $(VIDEOS),-$(shell basename '$(VIDEOS)'))

STAMP := $(VENV)/.installed
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(STAMP)
	$(BIN)/rhofast demo --out '$(OUT)' $(if $(VIDEOS),--videos '$(VIDEOS)')

test: $(STAMP) lint
	$(BIN)/pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rhofast needs Python 3.11 or newer; say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --editable '.[$(DALI),dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs
