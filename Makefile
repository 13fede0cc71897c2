# make demo, make test: the two that a user needs. Each makes its own .venv; a machine needs only python3 (3.11 or newer)
# with venv and pip. make help lists the rest.
#
#   PYTHON=python3.13   the interpreter (default: the newest suitable one on PATH)
#   VENV=.venv          where the environment goes
#   ARGS="-k pipe -x"   handed to pytest, or to the benchmark

SHELL := /bin/sh
# The tests start thousands of interpreters, and each would compile the library for itself.
unexport PYTHONDONTWRITEBYTECODE
VENV ?= .venv
PYTHON ?=
ARGS ?=
GROUP ?= dev
DIST ?= dist

CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11
py := $(VENV)/bin/python
pip := $(py) -m pip --disable-pip-version-check --quiet install

# The stamps carry the checkout's place: a copied or moved checkout is installed anew.
here := $(shell printf %s "$(CURDIR)" | cksum | cut -d' ' -f1)
package := $(VENV)/.package-$(here)
tests := $(VENV)/.test-$(here)
dev := $(VENV)/.dev-$(here)
integration := $(VENV)/integration/.made-$(here)
docs := $(VENV)/.docs-$(here)
SITE ?= site

.DEFAULT_GOAL := help
.PHONY: help demo test coverage stress conformance integration lint format types mypy mypy-zygote pyright bench docs wheel clean requirements
.PHONY: interpreter

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*  ## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(package)  ## the main job, on this machine, beside the standard library
	$(VENV)/bin/safespawn demo $(ARGS)

test: $(tests)  ## the test suite
	$(py) -m pytest $(ARGS)

# A test may fail because it is watched: the table is printed all the same, and the exit code is that of the tests.
coverage: $(dev)  ## branch coverage of the tests, child processes counted, by package (ARGS: which tests)
	@rm -f .coverage .coverage.*; rc=0; $(py) -m coverage run -m pytest $(ARGS) || rc=$$?; \
	$(py) -m coverage combine --quiet && $(py) -m coverage json --quiet -o .coverage.json && \
	$(py) -c "$$by_package" .coverage.json; exit $$rc

stress: $(tests)  ## the tests that load the machine for minutes
	$(py) -m pytest -m stress $(ARGS)

integration: $(integration)  ## the library inside others, in an environment that has them: joblib, FastAPI, Celery, ...
	$(VENV)/integration/bin/python -m pytest -m integration $(ARGS) tests/integration

conformance: $(package)  ## CPython's own suites against the drop-in modules (ARGS=--fast: a part)
	$(py) tests/conformance.py --envs $(VENV)/conformance $(ARGS)

lint: $(dev)  ## ruff: rules and formatting
	@rc=0; $(py) -m ruff check . || rc=1; $(py) -m ruff format --check . || rc=1; exit $$rc

format: $(dev)  ## let ruff repair what it can
	$(py) -m ruff check --fix .
	$(py) -m ruff format .

types: mypy mypy-zygote pyright  ## mypy strict, pyright

mypy: $(dev)
	$(py) -m mypy

# Apart, because the zygote's modules know each other by plain names: see [tool.mypy] in pyproject.toml.
mypy-zygote: $(dev)
	MYPYPATH=safespawn/_zygote $(py) -m mypy $(filter-out %/__init__.py,$(wildcard safespawn/_zygote/*.py))

# Pyright needs node, which its wheels bring on the usual platforms; where there is none, that is said, not hidden. It
# finds the environment by PATH (--pythonpath would follow the link to the interpreter that the environment was made of).
pyright: export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
pyright: $(dev)
	@PATH="$(abspath $(VENV))/bin:$$PATH"; \
	if pyright --version >/dev/null 2>&1; then set -ex; \
	    pyright; \
	    pyright --ignoreexternal --verifytypes safespawn; \
	else echo "pyright: NOT CHECKED, it cannot run on this machine"; fi

bench: $(tests)  ## every figure the README quotes, against the peers, in one run
	$(py) -m bench $(ARGS)

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(docs)  ## the site, in site/: strict, and nothing in it is fetched from elsewhere
	$(py) -m mkdocs build --strict --clean --site-dir "$(abspath $(SITE))"

wheel: $(dev)  ## sdist and wheel, checked by twine
	rm -rf $(DIST)
	$(py) -m build --outdir $(DIST)
	$(py) -m twine check --strict $(DIST)/*

clean:  ## remove the environment, builds and caches
	rm -rf $(VENV) $(DIST) $(SITE) build .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage .coverage.* mutants
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment ---------------------------------------------------------------------------------------------------

# What one dependency group asks for, one requirement a line: pip itself reads [dependency-groups] only since 25.1.
define list_group
import sys, tomllib
groups = tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]
def walk(name):
    for item in groups[name]:
        if isinstance(item, str): print(item)
        else: walk(item["include-group"])
walk(sys.argv[1])
endef
export list_group

# The report of coverage.py, summed up by package.
define by_package
import collections, json, os, sys
sums = collections.defaultdict(collections.Counter)
for path, file in json.load(open(sys.argv[1]))["files"].items():
    for name in (os.path.dirname(path), "all"):
        sums[name].update({"modules": 1, **file["summary"]})
columns = ("modules", "num_statements", "missing_lines", "num_branches", "missing_branches")
print(f"\n{'package':36}{'modules':>8}{'lines':>8}{'missed':>8}{'branches':>9}{'missed':>8}{'covered':>9}")
for name, total in sorted(sums.items(), key=lambda item: (item[0] == "all", item[0])):
    seen = total["covered_lines"] + total["covered_branches"]
    share = seen / max(1, total["num_statements"] + total["num_branches"])
    print(f"{name:36}" + "".join(f"{total[c]:>{w}}" for c, w in zip(columns, (8, 8, 8, 9, 8))) + f"{share:>9.1%}")
endef
export by_package

# Says "rank path" of an interpreter that really runs, is new enough and can make an environment; a pre-release ranks last.
define probe
import sys, venv, ensurepip
v = sys.version_info
if sys.implementation.name == "cpython" and v >= (3, 11):
    print("%d%03d%03d%03d" % (v.releaselevel == "final", *v[:3]), sys.executable)
endef
export probe

requirements: $(py)
	@$(py) -c "$$list_group" $(GROUP)

$(py):
	@best=0; if [ -n "$(PYTHON)" ]; then try="$(PYTHON)"; else try="$(CANDIDATES)"; fi; \
	for name in $$try; do \
	    found=$$("$$name" -c "$$probe" 2>/dev/null) || continue; \
	    [ -n "$$found" ] || continue; \
	    rank=$${found%% *}; [ "$$rank" -gt "$$best" ] && best=$$rank && chosen=$${found#* }; \
	done; \
	if [ "$$best" = 0 ]; then \
	    echo "safespawn needs CPython 3.11 or newer with venv and pip; tried: $$try." >&2; \
	    echo "Install one (Debian, Ubuntu: python3 and python3-venv) or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	    exit 1; \
	fi; \
	echo "$(VENV): $$("$$chosen" --version), $$chosen"; \
	rm -rf $(VENV) && "$$chosen" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# PYTHON= counts when the environment is made; an environment of another version is not silently used in its place.
interpreter: $(py)
	@[ -z "$(PYTHON)" ] || { \
	    want=$$("$(PYTHON)" -c 'import sys; print(sys.version)') && have=$$($(py) -c 'import sys; print(sys.version)') && \
	    [ "$$want" = "$$have" ] || \
	    { echo "$(VENV) is of Python $${have%% *}, $(PYTHON) is $${want%% *}: make clean first, or VENV=another" >&2; exit 1; }; }

$(package): pyproject.toml | $(py) interpreter
	$(pip) --editable .
	@touch $@

$(tests): pyproject.toml | $(py) interpreter
	@$(py) -c "$$list_group" test > $(VENV)/test.txt
	$(pip) --editable . --requirement $(VENV)/test.txt
	@touch $@ $(package)

$(integration): pyproject.toml | $(py) interpreter
	@$(py) -m venv $(VENV)/integration
	@$(py) -c "$$list_group" integration > $(VENV)/integration.txt
	$(VENV)/integration/bin/python -m pip --disable-pip-version-check --quiet install \
	    --editable . --requirement $(VENV)/integration.txt
	@touch $@

$(dev): pyproject.toml | $(py) interpreter
	@$(py) -c "$$list_group" dev > $(VENV)/dev.txt
	$(pip) --editable . --requirement $(VENV)/dev.txt
	@touch $@ $(tests) $(package)

$(docs): pyproject.toml | $(py) interpreter
	@$(py) -c "$$list_group" docs > $(VENV)/docs.txt
	$(pip) --editable . --requirement $(VENV)/docs.txt
	@touch $@ $(package)
