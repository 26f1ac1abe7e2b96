# Two commands do everything: `make demo` and `make test`. Each makes .venv from the lock if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

# Says what is coming, or that there is no room for it, before half of it has been fetched.
define ROOM_SCRIPT
import os, shutil, sys
free = shutil.disk_usage(".").free / 1e9
if os.path.exists("$(BIN)/ruff"):
    sys.exit()
if free < 8:
    sys.exit(f"the environment takes about 7 GB in $(abspath $(VENV)), and {free:.1f} GB are free: make room first")
print("fetching the environment, about 7 GB in $(abspath $(VENV)): once, and some minutes", flush=True)
endef
export ROOM_SCRIPT
ROOM = $(PYTHON) -c "$$ROOM_SCRIPT"

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
	@$(ROOM) || exit 2
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
