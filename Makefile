# Two commands do everything: `make demo` and `make test`. Each makes .venv from the lock if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

.DELETE_ON_ERROR:
.PHONY: demo test lint lock clean

demo: $(VENV)/.installed
	$(BIN)/python scripts/demo.py

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The environment has no pip of its own: the caller's pip fills it, so that python3 without ensurepip is enough.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "plasticity-cl needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 2; }
ifdef UV
	$(UV) venv -q --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip install -q --python $(BIN)/python --require-hashes -r requirements.lock
	$(UV) pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
else
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install -q --no-deps --require-hashes -r requirements.lock
	$(PYTHON) -m pip --python $(BIN)/python install -q --no-deps --no-build-isolation -e .
endif
	@touch $@

# Needs uv. Addresses of registries stay out of the lock.
lock:
	uv pip compile -q --all-extras --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
	  --python-version 3.11 pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) demo build *.egg-info
