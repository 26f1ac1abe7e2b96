# Two commands do everything: `make demo` and `make test`. Each makes .venv from the lock if it is missing.
PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

# Says what is coming, or that there is no room for it, before half of it has been fetched.
define ROOM_SCRIPT
import os, shutil, sys
where = os.environ["ENVIRONMENT"]
free = shutil.disk_usage(".").free / 1e9
if os.path.exists(f"{where}/bin/pytest"):
    sys.exit()
if free < 8:
    sys.exit(f"the environment takes about 7 GB in {where}, and {free:.1f} GB are free: make room first")
print(f"fetching the environment, about 7 GB in {where}: once, and some minutes", flush=True)
endef
export ROOM_SCRIPT

# $(1): the environment, $(2): what is to be in it. It has no pip of its own: the caller's pip fills it, so that python3
# without ensurepip is enough.
define FILL
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "plasticity-cl needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 2; }
@ENVIRONMENT=$(abspath $(1)) $(PYTHON) -c "$$ROOM_SCRIPT" || exit 2
$(if $(UV),$(call FILL_WITH_UV,$(1),$(2)),$(call FILL_WITH_PIP,$(1),$(2)))
@touch $@
endef
define FILL_WITH_UV
$(UV) venv -q --allow-existing --python $(PYTHON) $(1)
$(UV) pip install -q --python $(1)/bin/python --require-hashes -r $(2)
$(UV) pip install -q --python $(1)/bin/python --no-deps --no-build-isolation -e .
endef
define FILL_WITH_PIP
$(PYTHON) -m venv --without-pip $(1)
$(PYTHON) -m pip --python $(1)/bin/python install -q --no-deps --require-hashes -r $(2)
$(PYTHON) -m pip --python $(1)/bin/python install -q --no-deps --no-build-isolation -e .
endef

.DELETE_ON_ERROR:
.PHONY: demo test quick lint docs hooks test-lowest lock clean

demo: $(VENV)/.installed
	$(BIN)/python scripts/demo.py

test: $(VENV)/.installed lint docs
	$(BIN)/python -m pytest -n 2

# What to run between two changes: all but the tests that take more than about five seconds each.
quick: $(VENV)/.installed lint
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Into build/docs, from scratch: a page that is gone leaves nothing that a link could still lead to.
docs: $(VENV)/.installed
	rm -rf build/docs
	$(BIN)/python -m sphinx -q -W --keep-going -n -b html docs build/docs

# Lint before each commit.
hooks: $(VENV)/.installed
	$(BIN)/pre-commit install

# The quick tests with the lowest versions that pyproject.toml allows of what it names.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n 2 -m "not slow"

$(VENV)/.installed: requirements.lock pyproject.toml
	$(call FILL,$(VENV),requirements.lock)

$(LOWEST)/.installed: requirements-lowest.txt pyproject.toml
	$(call FILL,$(LOWEST),requirements-lowest.txt)

# Needs uv. Addresses of registries stay out of the locks. In the lowest one, setuptools builds the package and nothing asks
# for it; the newest versions of what Avalanche brings along would ask for a scipy that is not the lowest; and the newest
# pyparsing warns of how the lowest matplotlib calls it, where tests let no warning pass.
COMPILE := uv pip compile -q --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --python-version 3.11
lock:
	$(COMPILE) --all-extras pyproject.toml -o requirements.lock
	printf 'setuptools>=77\nscipy==1.11.*\npyparsing==3.2.*\n' | $(COMPILE) --extra test --resolution lowest-direct pyproject.toml - -o requirements-lowest.txt

clean:
	rm -rf $(VENV) $(LOWEST) demo build docs/api *.egg-info
