# `make demo` and `make test` are each enough by themselves on a fresh machine with Python 3.11 or 3.12.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
OUT    ?= runs/demo

# VBench's pins break diffusers, so it has an environment of its own.
VBENCH_PYTHON ?= $(PYTHON)
VBENCH_VENV   := .venv-vbench
VBENCH_BIN    := $(VBENCH_VENV)/bin
VBENCH_STAMP  := $(VBENCH_VENV)/.installed

.PHONY: setup demo test check format clean vbench-env test-vbench

setup: $(STAMP)

# Re-run only when what is to be installed changed, so a second call needs no network.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else "Python 3.11 or 3.12 is needed, this is %d.%d; set PYTHON=" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch setuptools wheel
	DS_BUILD_OPS=0 $(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/dvg sweep experiments/specs/demo.yaml --out $(OUT)

# On two processes; tests/conftest.py says which file runs where.
test: setup
	$(BIN)/python -m pytest -q -n 2 tests

vbench-env: $(VBENCH_STAMP)

$(VBENCH_STAMP): constraints-vbench.txt
	@$(VBENCH_PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v == (3, 11) else "VBench needs Python 3.11 (its tokenizers have no wheels for later ones), this is %d.%d; set VBENCH_PYTHON=" % v)'
	test -x $(VBENCH_BIN)/python || $(VBENCH_PYTHON) -m venv $(VBENCH_VENV)
	$(VBENCH_BIN)/python -m pip install -q --disable-pip-version-check -c constraints-vbench.txt torch setuptools wheel numpy
	$(VBENCH_BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -c constraints-vbench.txt vbench torchvision
	touch $(VBENCH_STAMP)

test-vbench: setup vbench-env
	DVG_VBENCH_PYTHON=$(CURDIR)/$(VBENCH_BIN)/python $(BIN)/python -m pytest -q tests/vbench

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_import_law.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VBENCH_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
