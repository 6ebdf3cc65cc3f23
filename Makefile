# The two commands: `make run` and `make test`. Each does its own set-up; both work from any folder
# (`make -C path/to/checkout run`, or `make -f ../Makefile run` from inside).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
PYTHON ?= python3
BIN := $(ROOT)/.venv/bin
IN_ROOT := cd "$(ROOT)" &&

# Where Debian puts PostgreSQL's server, which is not on the path.
POSTGRESQL := $(lastword $(sort $(wildcard /usr/lib/postgresql/*/bin/postgres)))

.PHONY: help run cluster backup restore test lint format catalog adapter-table bench-init bench-merge bench-train bench-dashboard bench-inference bench-cases bench-postgresql bench-cluster bench-load soak faults chromium postgresql bench-merge-files bench-predict screenshots

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' "$(ROOT)/Makefile" | sed -E 's/:.*## /\t/' | expand -t 18

$(ROOT)/.venv/bin/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "PEFT Lab needs Python 3.11 or 3.12; name one with: make run PYTHON=python3.12" >&2; exit 1; }
	"$(PYTHON)" -m venv "$(ROOT)/.venv"

$(ROOT)/.venv/installed: $(ROOT)/requirements.txt | $(ROOT)/.venv/bin/python
	@echo "Installing requirements (the first time takes a few minutes) ..."
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -r "$(ROOT)/requirements.txt"
	touch "$@"

$(ROOT)/.venv/installed-tests: $(ROOT)/tests/requirements.txt $(ROOT)/.venv/installed
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -r "$(ROOT)/tests/requirements.txt"
	touch "$@"

$(ROOT)/.venv/installed-cluster: $(ROOT)/engine/executors/requirements-cluster.txt $(ROOT)/.venv/installed
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -r "$(ROOT)/engine/executors/requirements-cluster.txt"
	touch "$@"

run: $(ROOT)/.venv/installed ## start the dashboard on http://127.0.0.1:8501
	@$(IN_ROOT) "$(BIN)/python" -m db upgrade
	@$(IN_ROOT) exec "$(BIN)/python" -m app

cluster: $(ROOT)/.venv/installed-cluster ## add what more than one machine needs: Ray and PostgreSQL's driver

backup: $(ROOT)/.venv/installed ## copy the database, also while it is in use; prints the copy's name
	@$(IN_ROOT) "$(BIN)/python" -m db backup

restore: $(ROOT)/.venv/installed ## put a backup in the database's place: make restore FILE=...; the replaced one is kept
	@file="$(FILE)"; case "$$file" in ""|/*) ;; *) file="$(CURDIR)/$$file";; esac; \
	  $(IN_ROOT) "$(BIN)/python" -m db restore "$$file"

test: ruff chromium postgresql ## lint and all tests: browser, engine, faults, fuzz, app, db and unit
	@# The types are checked beside the tests: that takes a minute of one core.
	@$(MAKE) -f "$(ROOT)/Makefile" --no-print-directory --jobs 2 mypy tests-side-by-side
	@# By themselves: these hold promised times.
	@$(IN_ROOT) "$(BIN)/python" -m pytest -m alone tests/browser tests/engine tests/unit

.PHONY: ruff mypy tests-side-by-side
tests-side-by-side:
	@# Three for two cores: tests wait for processes a third of their time. A thread each, else they would wait for each
	@# other's; what measures sets its own. Long files go first, so that no process is left with one at the end.
	@$(IN_ROOT) OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE "$(BIN)/python" -m pytest --numprocesses 3 --dist loadfile \
	  --no-loadscope-reorder -m "not alone" tests/browser tests/faults tests/engine tests/fuzz tests/app tests/db tests/unit

lint: ruff mypy ## ruff and mypy

ruff: $(ROOT)/.venv/installed-tests
	@$(IN_ROOT) "$(BIN)/python" -m ruff check . && "$(BIN)/python" -m ruff format --check .

mypy: $(ROOT)/.venv/installed-tests
	@$(IN_ROOT) "$(BIN)/python" -m mypy

format: $(ROOT)/.venv/installed-tests ## let ruff fix and format
	@$(IN_ROOT) "$(BIN)/python" -m ruff check --fix . && "$(BIN)/python" -m ruff format .

chromium: # the browser tests fail, with the reason, where none can be had
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	  echo "No Chromium found and none could be installed: browser tests will fail." >&2

postgresql: # the tests on PostgreSQL are skipped, with the reason, where none can be had
	@[ -n "$(POSTGRESQL)" ] || command -v postgres >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >/dev/null; } || \
	  echo "No PostgreSQL found and none could be installed: the tests on it are skipped." >&2

catalog: $(ROOT)/.venv/installed ## write the generated parts of the catalog again
	@$(IN_ROOT) "$(BIN)/python" -m engine.generate_catalog

adapter-table: $(ROOT)/.venv/installed ## measure every adapter type and write docs/adapter-types.md (about five minutes)
	@$(IN_ROOT) "$(BIN)/python" -m engine.generate_adapter_table

screenshots: $(ROOT)/.venv/installed-tests chromium ## take the pictures of every page that the README shows (docs/screenshots)
	@$(IN_ROOT) "$(BIN)/python" -m tests.screenshots

faults: $(ROOT)/.venv/installed-tests ## kill its processes 300 times and print what was lost (15 minutes)
	@$(IN_ROOT) "$(BIN)/python" -m tests.faults

bench-init: $(ROOT)/.venv/installed ## the figures of adapter init; prints tables
	@$(IN_ROOT) "$(BIN)/python" -m tests.benchmarks.bench_init
	@$(IN_ROOT) "$(BIN)/python" -m tests.benchmarks.bench_dispatch

bench-merge: $(ROOT)/.venv/installed ## the figures of merging: time, memory and error by strategy
	@$(IN_ROOT) "$(BIN)/python" -m tests.benchmarks.bench_merge

bench-train: $(ROOT)/.venv/installed ## what training steps cost: by strategy, memory saver and adapted modules
	@$(IN_ROOT) "$(BIN)/python" -m tests.benchmarks.bench_train

bench-inference: $(ROOT)/.venv/installed ## what an unmerged adapter costs per token, stock and fused; prints tables
	@$(IN_ROOT) "$(BIN)/python" -m tests.benchmarks.bench_inference

bench-cases: $(ROOT)/.venv/installed ## the five claims at this machine's size, with their verdicts (under 20 minutes)
	@$(IN_ROOT) "$(BIN)/python" -m tests.benchmarks.bench_cases

.PHONY: bench-cluster
bench-cluster: $(ROOT)/.venv/installed-tests ## what a cluster costs a run, and 1,000 runs over four nodes of which one is killed twice
	@$(IN_ROOT) "$(BIN)/python" -m tests.benchmarks.bench_cluster

bench-dashboard: $(ROOT)/.venv/installed-tests chromium ## how fast pages answer: during a measurement, and over 10,000 stored runs
	@$(IN_ROOT) "$(BIN)/python" -m tests.benchmarks.bench_dashboard
	@$(IN_ROOT) "$(BIN)/python" -m tests.benchmarks.bench_scale
	@$(IN_ROOT) "$(BIN)/python" -m tests.benchmarks.bench_visits

bench-load: $(ROOT)/.venv/installed-tests chromium ## ten people browse while runs are measured: page times, and runs disturbed
	@$(IN_ROOT) "$(BIN)/python" -m tests.benchmarks.bench_load

soak: $(ROOT)/.venv/installed-tests ## twenty minutes of runs and people: memory and file handles of each process, database growth
	@$(IN_ROOT) "$(BIN)/python" -m tests.benchmarks.soak --minutes $(or $(MINUTES),20)

bench-postgresql: $(ROOT)/.venv/installed-tests postgresql ## how fast a lab on PostgreSQL queues and stores runs, and what that means for 100 nodes
	@$(IN_ROOT) "$(BIN)/python" -m tests.benchmarks.bench_postgresql

bench-merge-files: $(ROOT)/.venv/installed ## merging files against merge_and_unload: time and memory (45 GB of disk)
	@$(IN_ROOT) "$(BIN)/python" -m tests.benchmarks.bench_merge_files

bench-predict: $(ROOT)/.venv/installed ## how far predicted peaks are from measured ones, and what a prediction costs
	@$(IN_ROOT) "$(BIN)/python" -m tests.benchmarks.bench_predict
	@$(IN_ROOT) "$(BIN)/python" -m tests.benchmarks.bench_predict_gpu

.PHONY: audit licences
audit: $(ROOT)/.venv/installed-tests ## known weaknesses of the installed packages, as a warning
	@$(IN_ROOT) timeout 60 "$(BIN)/python" -m pip_audit --progress-spinner off --timeout 5 || \
	  echo "warning: pip-audit found weaknesses, or could not ask; see above" >&2

licences: $(ROOT)/.venv/installed-tests ## list the licences of what is installed along (docs/licences.md)
	@$(IN_ROOT) "$(BIN)/python" -m tests.licences
