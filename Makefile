# Set-up happens on first use, in .venv, and again only when what is installed has changed.
PYTHON ?= python3
BIN := .venv/bin
LINKS := $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)")

.PHONY: demo test lint clean

demo: .venv/ready  ## Train as usual and with every subset of the sensors, and switch them off
	$(BIN)/python examples/demo.py

test: lint  ## Everything that has to hold
	$(BIN)/pytest --numprocesses auto --dist loadgroup

lint: .venv/ready
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(LINKS) -c constraints.txt -e ".[train,dev]"
	touch $@

clean:
	rm -rf .venv demo runs
