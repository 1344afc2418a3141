# Everything runs inside .venv, installed within the tested set of constraints.txt.
PYTHON      ?= python3
VENV        := .venv
PY          := $(VENV)/bin/python
STAMP       := $(VENV)/.installed
PIP_INSTALL := $(PY) -m pip install --disable-pip-version-check --no-input
PYTEST_ARGS ?=

MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help

# A stamp is worth nothing if the interpreter is gone or the checkout has moved since: install again then.
HEALTHY := $(if $(wildcard $(STAMP)),$(shell $(PY) -I -c "import os, pip, importlib.util as u; s = u.find_spec('saferedir'); print('yes' * os.path.realpath(s.origin).startswith(os.path.realpath('src') + os.sep))" 2>/dev/null))

.PHONY: help setup demo test browser security test-accelerators contract rehearsal test-oldest lint format docs check clean always

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## create .venv and install the library with its tools (only when something changed)

$(STAMP): pyproject.toml constraints.txt $(if $(HEALTHY),,always)
	@set -e; \
	if ! $(PY) -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
			{ echo "saferedir needs Python 3.11 or newer, but PYTHON=$(PYTHON) is not: try make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }; \
		echo "==> creating $(VENV) with $$($(PYTHON) --version)"; \
		rm -rf $(VENV); \
		$(PYTHON) -m venv $(VENV); \
	fi; \
	$(PY) -I -c 'import pip' >/dev/null 2>&1 || $(PY) -m ensurepip; \
	echo "==> installing saferedir and its tools into $(VENV), versions from constraints.txt (the first time takes minutes)"; \
	for attempt in 1 2 3; do \
		if $(PIP_INSTALL) --quiet -c constraints.txt -e '.[dev,plots,bench,index,nudenet,vlm,ray,litserve,server,postgres,playground,c2pa,watermark,eval-unlearn]'; then touch $(STAMP); break; fi; \
		if [ $$attempt = 3 ]; then echo "pip failed three times: its last message above says why" >&2; exit 1; fi; \
		echo "==> pip failed, trying again ($$attempt of 2)"; sleep $$((attempt * 5)); \
	done; \
	echo "==> ready: $(VENV)/bin/saferedir --help"

demo: setup  ## see a guard at work: images and a comparison in runs/demo
	$(VENV)/bin/saferedir demo --out runs/demo

test: setup  ## run the tests, offline and on CPU, one process a core (PYTEST_ARGS="-m 'not slow'" for the quick ones)
	$(PY) -m pytest -n auto --dist worksteal --durations=15 $(PYTEST_ARGS)

browser:  ## install Chromium for the tests of pages, where Debian's packages can be installed; without it they are skipped
	@command -v chromium >/dev/null || { export DEBIAN_FRONTEND=noninteractive; timeout 120 apt-get update -qq && timeout 300 apt-get install -y -qq --no-install-recommends chromium; }

ACCELERATORS := $(VENV)/accelerators
test-accelerators: setup  ## guards beside DeepCache, ToMe, torchao and quanto, installed apart from the rest
	$(PIP_INSTALL) --quiet --no-deps --target $(ACCELERATORS) DeepCache==0.1.1 tomesd==0.1.3 torchao==0.18.0 optimum-quanto==0.2.7
	PYTHONPATH=$(ACCELERATORS) $(PY) -m pytest -rs tests/accelerators $(PYTEST_ARGS)

contract: setup  ## run every contract check of every family and guard (a quarter of an hour); writes docs/pipelines.md
	$(PY) -m tests.contract.table

rehearsal: setup  ## walk every family's whole road at real shapes (an hour and 10 GB of memory); writes docs/rehearsal.md
	$(PY) -m tests.rehearsal.table --out docs

# The suite's core: the seam, attach, protect, one trained guard, loading, terminal and files.
OLDEST       := .venv-oldest
OLDEST_TESTS := tests/guards/test_guard.py tests/pipelines/test_schedules.py tests/test_tiny_pipelines.py tests/test_attach.py \
	tests/test_protect.py tests/pipelines/test_loading.py tests/cli/test_terminal.py tests/utils tests/guards/saferedir/test_guard.py

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --no-input --quiet -c constraints-oldest.txt \
		-e '.[plots]' pytest pytest-xdist hypothesis scipy pydantic jinja2 sentencepiece
	touch $@

test-oldest: $(OLDEST)/.installed  ## the suite's core with the oldest versions that pyproject allows, in .venv-oldest
	$(OLDEST)/bin/python -m pytest -m 'not slow' $(PYTEST_ARGS) $(OLDEST_TESTS)

lint: setup  ## ruff (rules and layout), codespell, import-linter, and mypy (strict on src and tools/pictoworld)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check src tests benchmarks tools
	$(PY) -m codespell_lib
	$(VENV)/bin/lint-imports --no-cache
	$(PY) -m mypy

security: setup  ## bandit on src, pip-audit on the installed packages (which needs the network, and says so)
	$(PY) -m bandit -q -r src/saferedir -c pyproject.toml
	$(PY) -m pip_audit --progress-spinner off --skip-editable

format: setup  ## lay the code out, and mend what ruff can mend by itself
	$(PY) -m ruff check --fix --exit-zero .
	$(PY) -m ruff format src tests benchmarks tools

# The site's tools are not among those of `make setup`: nothing else needs them.
DOCS_STAMP := $(VENV)/.installed-docs
$(DOCS_STAMP): pyproject.toml constraints.txt $(STAMP)
	$(PIP_INSTALL) --quiet -c constraints.txt -e '.[docs]'
	touch $@

docs: setup $(DOCS_STAMP)  ## build the documentation site into build/site; a broken link or reference ends it
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict

check: lint test  ## lint + test

clean:  ## remove caches and build output, keep .venv and runs
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
