# Every step of CI is a target here. `make help` lists them.
VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3.13 python3.12 python3.11 python3 python3.14,$(if $(shell $(p) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null | grep True),$(p))))
STAMP := $(VENV)/.installed-$(shell cksum < requirements.lock | cut -d' ' -f1)
BASE ?= HEAD
export PATH := $(abspath $(VENV))/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
# A dvc that was killed while it wrote its own lock leaves it empty, and then refuses to run.
MEND := find .dvc/tmp -maxdepth 1 -name rwlock -empty -delete 2>/dev/null || true
# Clones that share one DVC cache let DVC copy, unless .dvc/config.local says otherwise: see docs/environment.md.
SHARE := ! grep -qs '^ *dir *=' .dvc/config .dvc/config.local || grep -qs '^ *type *=' .dvc/config.local || dvc config --local cache.type reflink,copy
.DEFAULT_GOAL := help
# `make run` is the whole pipeline for a person, `make repro` the same for CI.
.PHONY: help install run repro summary ui publish test check bench against-fastai study picture keys cuts rank cache lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: $(STAMP)  ## make the environment in .venv, with the versions of requirements.lock

$(STAMP):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is missing: install it, or name it: make PYTHON=/path/to/python" >&2; exit 2; }
	@command -v git >/dev/null || { echo "git is missing: install it; DVC keeps versions with it" >&2; exit 2; }
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "this folder is no git clone: run \`git init\`, or clone the repository" >&2; exit 2; }
	@$(PYTHON) -m venv --help >/dev/null 2>&1 || { echo "Python's venv is missing: install it (Debian: python3-venv)" >&2; exit 2; }
	@echo "making the environment in $(VENV): some minutes, once"
	@rm -f $(VENV)/.installed-*
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock || { echo "the installation failed: is a Python package index reachable?" >&2; exit 2; }
	@touch $@

run: $(STAMP)  ## run the whole pipeline, then print the leaderboard
	@python -m stages.params
	@$(MEND)
	@$(SHARE)
	@dvc repro
	@python -m stages.scoring.leaderboard

repro: $(STAMP)  ## run what changed; what a DVC remote holds is pulled, not computed
	@python -m stages.params
	@$(MEND)
	@$(SHARE)
	@dvc repro $$(dvc remote list | grep -q . && echo --pull --allow-missing)

summary: $(STAMP)  ## print the leaderboard as Markdown, and what has changed since BASE (a git revision)
	@python -m stages.scoring.leaderboard --markdown
	@python -m stages.scoring.leaderboard --against $(BASE)

ui: $(STAMP)  ## open the MLflow UI (PORT=5000)
	@python -m stages.tracking.ui

publish: $(STAMP)  ## put into MLflow what a dead server kept out
	@python -m stages.publish --strict

test: $(STAMP)  ## run every test
	@python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: $(STAMP)  ## format, lint and types
	@ruff format --check --quiet . || { echo "not formatted: run \`ruff format .\`" >&2; exit 1; }
	@ruff check --quiet .
	@mypy

bench: $(STAMP)  ## measure what docs/benchmarks.md says
	@python -m tests.benchmarks.nothing_to_do
	@python -m tests.benchmarks.extract
	@python -m tests.benchmarks.training
	@python -m tests.benchmarks.rows
	@python -m tests.benchmarks.heads
	@python -m tests.benchmarks.scoring

against-fastai: $(STAMP)  ## measure the pipeline against fastai, which it installs (REPEATS=1)
	@uv pip install --quiet --python $(VENV) --constraint requirements.lock --requirement pyproject.toml --extra fastai
	@python -m tests.benchmarks.against_fastai $(or $(REPEATS),1)

study: $(STAMP)  ## run the full study, hours that can be stopped and go on (STUDY=docs/study)
	@python -m tests.benchmarks.study $(or $(STUDY),docs/study)

picture: $(STAMP)  ## take the picture in the README anew, of reports/report.html
	@python -m tests.browser

keys: $(STAMP)  ## print every key of params.yaml, and renew docs/params.md
	@python -m stages.keys | tee docs/params.md

cuts: $(STAMP)  ## print where a network can be cut (BACKBONE=lite0, or any network's name; SIZE=224)
	@test -n "$(BACKBONE)" || { echo "name a network: make cuts BACKBONE=lite0" >&2; exit 2; }
	@python -m stages.backbones.cuts $(BACKBONE) $(if $(SIZE),--image-size $(SIZE))

rank: $(STAMP)  ## score the extracted features of a data set before anything is trained on them (DATASET=cells)
	@python -m stages.scoring.transferability $(or $(DATASET),cells)

cache: $(STAMP)  ## print what the private cache holds, and what no features use (PRUNE=1: remove that)
	@python -m stages.cache $(if $(PRUNE),--prune)

lock: $(STAMP)  ## renew requirements.lock from pyproject.toml
	@uv pip compile pyproject.toml --quiet --universal --upgrade --python-version 3.11 --extra dev --no-annotate --no-header --output-file requirements.lock

clean:  ## remove the environment and what stages have written; the cache of activations and MLflow's store stay
	@rm -rf $(VENV) data/raw data/prepared data/features data/models data/evaluations data/costs
