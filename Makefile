# Everything runs in .venv, which is made and filled on first use; nothing but Python is needed.
# Another interpreter: make test PYTHON=python3.12

PYTHON := python3 python3.13 python3.12 python3.11
VENV   := .venv
PY     := $(VENV)/bin/python
# -P: the checkout holds the package, it is no place to import `ir` or `passes` from.
RUN    := $(PY) -P -m
N      := 2000
SEED   := 0
JOBS   := 2
DRAWN  := 100
LAYERS := __init__.py py.typed bench cli compiler dynamic ir passes runtime

.PHONY: help demo test test-matrix docs lint types format fuzz fuzz-doors properties coverage mutations clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

demo: $(VENV)/examples.stamp ## train a small GPT; says where its loss curve and graph dumps lie
	$(PY) examples/gpt.py

test: lint ## ruff, mypy and every test
	$(RUN) pytest -n 2 --dist worksteal

docs: $(VENV)/dev.stamp ## the documentation site, into build/site; open build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

test-matrix: $(PY) ## each Python with each JAX that it gets: make test-matrix TESTS=tests/ir
	$(PY) tests/matrix.py $(TESTS)

lint: $(VENV)/dev.stamp types ## ruff and mypy
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(VENV)/dev.stamp ## mypy alone
	@mkdir -p build/typing/backpass
	@for part in $(LAYERS); do ln -sfn "../../../$$part" "build/typing/backpass/$$part"; done
	$(RUN) mypy

format: $(VENV)/dev.stamp ## lay out the code and mend what ruff can mend
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

fuzz: $(VENV)/dev.stamp ## random programs against JAX and finite differences: make fuzz N=20000 SEED=0
	PYTHONPATH=tests $(RUN) fuzz.run -n $(N) --seed $(SEED) --jobs $(JOBS)

fuzz-doors: $(VENV)/dev.stamp ## bad input for all that reads text and files: make fuzz-doors N=1000000
	PYTHONPATH=tests $(RUN) fuzz.knock -n $(N) --seed $(SEED)

properties: $(VENV)/dev.stamp ## the property tests, with fresh seeds and many more examples
	$(RUN) pytest -n 2 -m hypothesis --hypothesis-profile=fuzz

coverage: $(VENV)/dev.stamp ## every test, and which lines it runs; fails below 90 % of the package
	@mkdir -p build/coverage
	$(RUN) pytest -n 2 --dist worksteal --cov --cov-context=test --cov-fail-under=90 \
	    --cov-report=term:skip-covered --junitxml=build/coverage/times.xml

mutations: $(VENV)/dev.stamp ## faults put into ir/ and passes/: do tests notice? after make coverage
	PYTHONPATH=tests $(RUN) mutants.run -n $(DRAWN) --seed $(SEED) --jobs $(JOBS)

clean: ## remove all that make and its tools have made
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache examples/out
	find . -name __pycache__ -prune -exec rm -rf {} +

# The environment: a stamp for each set of extras, out of date when pyproject.toml changes.

SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))

$(PY):
	@for python in $(PYTHON); do \
	    if $$python -c '$(SUITABLE)' 2>/dev/null; then \
	        echo "making $(VENV) with $$($$python --version)"; exec $$python -m venv $(VENV); \
	    fi; \
	done; \
	echo "backpass needs Python 3.11, 3.12 or 3.13 with its venv module; found none among:" \
	    "$(PYTHON) (python3 is: $$(python3 --version 2>&1))." \
	    "Install one, or name yours: make PYTHON=path/to/python3.12 ..." >&2; \
	exit 1

# `dev` holds what `examples` needs.
$(VENV)/%.stamp: pyproject.toml | $(PY)
	@echo "installing backpass[$*] and what it needs, a few minutes the first time"
	@$(RUN) pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@ $(if $(filter dev,$*),$(VENV)/examples.stamp)
