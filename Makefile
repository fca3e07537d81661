# Every target sets up .venv first, once; all that is needed is make and Python 3.11 or newer.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3 python; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$p"; break; }; done)
BIN := .venv/bin
# pytest itself, not python -m pytest: that would put the bare folders on the import path.
PYTEST := $(BIN)/pytest

.PHONY: help setup demo test quick check format lint types docs bench reproduce golden clean
.DEFAULT_GOAL := help

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) \
		| while IFS='|' read -r name text; do printf '%-18s %s\n' "$$name" "$$text"; done

setup: .venv/.installed ## create .venv with ccnn and all development tools in it

.venv/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer with venv was found;" \
		"install one, or say where: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "setting up .venv with $(PYTHON) (once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: setup ## compile, execute and verify a small real network, then compile ResNet-50
	@$(BIN)/python tests/demo.py

test: setup ## all tests, the slow ones too
	@$(PYTEST) -n 2

quick: setup ## the fast tests only
	@$(PYTEST) -n 2 -m 'not slow'

check: format lint types test ## format, lint, types, tests: what a change must pass

format: setup ## is everything formatted? (make it so: .venv/bin/ruff format .)
	@$(BIN)/ruff format --check .

lint: setup ## ruff's findings
	@$(BIN)/ruff check .

# Checked through a link called ccnn, so that the checkout may have any name.
types: setup ## pyright's findings
	@mkdir -p .cache && ln -sfn "$(CURDIR)" .cache/ccnn
	@$(BIN)/pyright -p .cache/ccnn --pythonpath $(BIN)/python

# The reference is read from a package ccnn that holds the three rooms and nothing else.
docs: setup ## the documentation as a site, in build/site
	@mkdir -p .cache/api/ccnn && touch .cache/api/ccnn/__init__.py
	@for room in compiler passes targets; do ln -sfn "$(CURDIR)/$$room" .cache/api/ccnn/$$room; done
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q
	@echo "open build/site/index.html"

bench: setup ## networks of the onnx package at batch 32, and ResNet-50 serialized; tables
	@$(BIN)/python benchmarks/networks.py
	@$(BIN)/python benchmarks/mbs.py beyond --net resnet50 --gbuf 10

reproduce: setup ## shipped networks against PyTorch's results, figures of papers (many hours); tables
	@$(BIN)/python benchmarks/reproduce.py
	@$(BIN)/python benchmarks/flexsa.py --training
	@$(BIN)/python benchmarks/intergrad.py
	@$(BIN)/python benchmarks/mbs_model.py
	@$(BIN)/python benchmarks/mbs.py --gbuf 10

golden: setup ## renew the expected texts of the golden tests; review them in git diff
	@$(PYTEST) -q --update-golden

clean: ## remove everything that make made
	@rm -rf .venv .cache build dist ccnn-out *.egg-info .pytest_cache .ruff_cache .hypothesis
