# GT Store, from a checkout. Everything is set up in .venv, and again only when pyproject.toml changes.

PYTHON ?= python3
NODES ?= 7
REPLICAS ?= 3
ROUNDS ?= 10
SECONDS ?= 60
RUNS ?= 20000
COMMIT ?= HEAD
REDIS_SERVER ?= redis-server
MEMCACHED ?= memcached

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
WHEEL_DIR := build/wheel

# These take no socket, clock or thread, so their tests can reach every branch.
PURE := gtstore/wire/fields.py gtstore/wire/messages.py gtstore/wire/codec.py \
	gtstore/wire/stream.py gtstore/wire/explain.py gtstore/wire/json_form.py \
	gtstore/cluster_time.py gtstore/turns.py gtstore/placement.py gtstore/read_modify_write.py gtstore/disk.py gtstore/replica.py \
	gtstore/operations.py gtstore/membership.py gtstore/copying.py gtstore/settling.py gtstore/frame_words.py \
	gtstore/key_order.py gtstore/keyed_entries.py gtstore/scanning.py gtstore/scan_operation.py gtstore/scrubbing.py \
	gtstore/json_lines.py gtstore/mapping.py gtstore/results.py gtstore/write_ahead_log.py gtstore/format_2.py gtstore/text_table.py \
	gtstore/bench/zipfian.py gtstore/bench/workloads.py gtstore/bench/balance.py gtstore/bench/report.py
EMPTY :=
COMMA := ,
PURE_LIST := $(subst $(EMPTY) $(EMPTY),$(COMMA),$(strip $(PURE)))

define CHECK_WHEEL
import glob, sys, zipfile
wheel, = glob.glob("$(WHEEL_DIR)/*.whl")
names = zipfile.ZipFile(wheel).namelist()
strange = [name for name in names if not name.startswith(("gtstore/", "gtstore-"))]
missing = {"gtstore/py.typed", "gtstore/cli.py", "gtstore/wire/messages.py"} - set(names)
if strange or missing:
    sys.exit(f"{wheel}: does not belong there: {strange}; missing: {sorted(missing)}")
print(f"{wheel}: {len(names)} files, of gtstore only")
endef
export CHECK_WHEEL

.DEFAULT_GOAL := help
.PHONY: help run test test-long test-again sim fuzz chaos screenshots demo bench bench-durable against format clean

help: ## show these lines
	@awk -F ': .*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/installed ## start a manager with 7 storage nodes and 3 replicas (NODES, REPLICAS); Ctrl-C stops it
	@$(BIN)/python -m gtstore.managerd $(NODES) $(REPLICAS)

test: $(VENV)/installed-dev ## run every check: format, lint, types, tests, coverage, generated docs, build
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report
	$(BIN)/coverage report --include=$(PURE_LIST) --fail-under=100
	$(BIN)/python -m gtstore.wire.describe --check
	$(BIN)/python docs/api.py --check
	@rm -rf $(WHEEL_DIR)
	$(BIN)/python -m build --outdir $(WHEEL_DIR) . > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	@$(BIN)/python -c "$$CHECK_WHEEL"
	$(BIN)/python -m tests.fresh_project $(WHEEL_DIR)

LONG_CHAOS := $(BIN)/python -m tests.chaos --seconds 300
test-long: test ## the same, then what takes long: 20,000 simulated runs, ten chaos runs of 300 s
	$(BIN)/python -m tests.sim --runs 20000
	$(LONG_CHAOS) --seed 1 --nodes 4 --replicas 2 --mixed
	$(LONG_CHAOS) --seed 2 --nodes 5 --replicas 3 --long
	$(LONG_CHAOS) --seed 3 --nodes 7 --replicas 3 --overlap --network --steps
	$(LONG_CHAOS) --seed 4 --nodes 5 --replicas 3 --durable --long
	$(LONG_CHAOS) --seed 5 --nodes 3 --replicas 1 --durable --long
	$(LONG_CHAOS) --seed 6 --nodes 5 --replicas 3 --async --mixed
	$(LONG_CHAOS) --seed 7 --nodes 5 --replicas 3 --busy 2 --mixed
	$(LONG_CHAOS) --seed 8 --nodes 5 --replicas 3 --long --max-memory-mb 8
	$(LONG_CHAOS) --seed 9 --nodes 5 --replicas 3 --async
	if [ "$$(id -u)" = 0 ]; then $(LONG_CHAOS) --seed 10 --nodes 5 --replicas 3 --full-disk --long; fi

test-again: $(VENV)/installed-dev ## the tests ROUNDS times, for what goes wrong only now and then
	for round in $$(seq $(ROUNDS)); do $(BIN)/python -m pytest -q || exit 1; done

sim: $(VENV)/installed-dev ## simulated runs, RUNS of them (SEED is the first one's)
	$(BIN)/python -m tests.sim --runs $(RUNS) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/installed-dev ## damaged frames against a running cluster, for SECONDS; SEED repeats a run
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

# What a run has to live with: OVERLAP=1 (nodes fail while others lack copies), DURABLE=1, ASYNC=1, LONG=1 (values),
# FULL_DISK=1 (as root), STEPS=1 (of clocks), NETWORK=1 (a bad one), BUSY=N (loops beside), MEMORY_MB=N, MIXED=1 (SEED draws).
chaos: $(VENV)/installed-dev ## clients at work while nodes are killed, for SECONDS (SEED, NODES, REPLICAS; more: see Makefile)
	$(BIN)/python -m tests.chaos --seconds $(SECONDS) --nodes $(NODES) --replicas $(REPLICAS) \
		$(if $(SEED),--seed $(SEED)) $(if $(OVERLAP),--overlap) $(if $(DURABLE),--durable) \
		$(if $(ASYNC),--async) $(if $(LONG),--long) $(if $(FULL_DISK),--full-disk) \
		$(if $(STEPS),--steps) $(if $(NETWORK),--network) $(if $(BUSY),--busy $(BUSY)) \
		$(if $(MEMORY_MB),--max-memory-mb $(MEMORY_MB)) $(if $(MIXED),--mixed)

screenshots: $(VENV)/installed-dev ## take README's pictures of gtclient status and top again (tmux)
	$(BIN)/python docs/screenshots.py

demo: $(VENV)/installed ## show step by step how the store outlives two of seven nodes
	@$(BIN)/python examples/fail_over.py

bench: $(VENV)/installed-bench ## measure against Redis, memcached and bare sockets, ten minutes (REDIS_SERVER, MEMCACHED: paths)
	$(BIN)/python bench/peers.py --redis-server $(REDIS_SERVER) --memcached $(MEMCACHED) --plot build/bench

bench-durable: $(VENV)/installed-bench ## puts that are on disk: measure against Redis and a bare log (REDIS_SERVER)
	$(BIN)/python bench/durable.py --redis-server $(REDIS_SERVER)

against: $(VENV)/installed-dev ## is this tree as fast as COMMIT was? Both in turn, five minutes (ROUNDS: 15)
	$(BIN)/python bench/against.py $(COMMIT) $(if $(filter-out file,$(origin ROUNDS)),--rounds $(ROUNDS))

format: $(VENV)/installed-dev ## format the code, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove all that make has made
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment that came about only in part is removed, or else the next make would take it.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "GT Store needs Python 3.11 or newer, and '$(PYTHON)' is none;" \
			"name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "'$(PYTHON)' cannot make virtual environments: its modules venv and ensurepip come in" \
			"a package of their own; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }

$(VENV)/installed: pyproject.toml | $(BIN)/python
	@echo "installing gtstore into $(VENV)" >&2
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	@echo "installing gtstore and the tools of its checks into $(VENV)" >&2
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $(VENV)/installed $@

# pylibmc may have to be compiled, for which not every machine has what it takes. The benchmarks leave
# out the rows of what is missing.
$(VENV)/installed-bench: pyproject.toml | $(BIN)/python
	@echo "installing gtstore and the clients that it is measured against into $(VENV)" >&2
	@$(PIP_INSTALL) --editable '.[bench,durable,peers]'
	@$(PIP_INSTALL) pylibmc || echo "pylibmc cannot be installed: its rows will be left out" >&2
	@touch $(VENV)/installed $@
