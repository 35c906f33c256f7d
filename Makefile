# Every target sets up what it needs. ARGS go to the command: make demo ARGS="--drop 3", make test ARGS="-k codec".
PYTHON ?= python3
ARGS ?=
DEMO ?= --privacy record --attackers 1 --drop 1 --drop-at words
N ?= 8
SEEDS ?= 0-1999
J ?= 2
MINUTES ?= 5
SEED ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup broker lint test sim demo up down workers scale status logs compose-up compose-down peers bench chaos clean

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

.venv/stamp: pyproject.toml constraints.txt
	@deploy/setup/venv.sh $(PYTHON)

setup: .venv/stamp ## make .venv with everything in it

broker: ## install RabbitMQ with apt, as root, where neither Docker nor RabbitMQ is there
	@deploy/setup/broker.sh

lint: setup ## check style, types and import rules
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

test: setup broker ## run all tests over a real RabbitMQ, in J=2 processes
	$(BIN)/python -m pytest -n $(J) --dist loadfile $(ARGS)

sim: setup ## run SEEDS=0-1999 of the simulation: faults, crashes, invariants; what they covered
	$(BIN)/python -m tests.sim $(SEEDS) $(ARGS)

demo: setup broker ## everything at once over RabbitMQ: secure groups, privacy, an attacker, a lost client
	$(BIN)/comitia demo $(DEMO) $(ARGS)

up: setup broker ## start broker, coordinator and 20 enrolled clients in the background
	$(BIN)/comitia up $(ARGS)

down: setup ## stop them; ARGS=--purge removes what they learnt, too
	$(BIN)/comitia down $(ARGS)

workers: setup ## start N=8 worker processes that share out the clients
	$(BIN)/comitia workers $(N)

scale: setup ## change the number of worker processes to N=8
	$(BIN)/comitia scale $(N)

status: setup ## show how far the local stack is, and its processes
	$(BIN)/comitia status

logs: setup ## follow the logs of the local stack
	$(BIN)/comitia logs $(ARGS)

compose-up: setup ## the same in containers, by deploy/compose.yaml, with N=8 workers
	N=$(N) deploy/stack/compose.sh up $(ARGS)

compose-down: setup ## stop them; ARGS=--volumes removes what they learnt, too
	deploy/stack/compose.sh down $(ARGS)

# Flower asks for older versions of some packages than constraints.txt names, hence a place of its own.
.venv-peers/stamp: pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --editable '.[dev,bench]'
	touch $@

peers: .venv-peers/stamp ## make .venv-peers, with the libraries that the benchmark compares with

bench: setup broker ## measure the hot paths and a round, beside the peers if they are there
	$(or $(wildcard .venv-peers/bin),$(BIN))/python -m tests.bench $(ARGS)

chaos: setup broker ## kill, freeze and restart everything for MINUTES=5 (SEED=… repeats), then check what must hold
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

clean: ## stop the local stacks and remove everything that was made here
	[ ! -x $(BIN)/comitia ] || $(BIN)/comitia down
	[ ! -e .comitia/compose/env ] || deploy/stack/compose.sh down --volumes
	rm -rf .venv .venv-peers .comitia build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
