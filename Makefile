# make demo    what taskq does, on real input            make bench        end to end, against the bare data flow
# make test    ruff, mypy and all tests                   make bench-micro  single stages
# make full-disk  a tmpfs that fills up under load (CYCLES=20)
# make sim     more seeds of the simulation (SEEDS=0:2000, or UNTIL=10000: go on with the ledger)
# make fuzz    foreign bytes for the parsers (INPUTS=10000000), guided by coverage; goes on with the ledger
# make audit   known holes in the packages that taskq uses
# make kills   kill -9 of everything, 1,000 times in each mode (KILLS=1000 MODE=fsync,os,memory), and a storm of stale reports
# make leases  what becomes of leases when programs are stopped, killed or stuck: 3 minutes, into the ledger
# make chaos   workers behind a network that fails, killed, stopped and blocked: none of them ever stands (ROUNDS=300); goes on with the ledger
# make power-loss   images of what a power loss may leave (IMAGES=10000)
# make disk-errors  syncs and writes that fail (RUNS=600)
# make bench-peers  the same work for taskq and 13 other queues, side by side (ARGS='--only taskq,sidekiq --rounds 3', PLOT=1 to draw)
# make bench-flat   what must not grow with what waits, beside its bounds (ARGS='--only pending --scale 0.1')
# make bench-curves  rate and latency against payload size, workers, queues and backlog, as plots (ARGS='--only payloads --rounds 1')
# make load    10,000 connections, a storm of them, peers that do not read or hardly send, a flood (ONLY=flood)
# make corruption   damaged files (MUTATIONS=3000)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 0:2000
KILLS ?= 1000
MODE ?= fsync,os,memory
IMAGES ?= 10000
RUNS ?= 600
CYCLES ?= 20
UNTIL ?=
INPUTS ?= 10000000
MUTATIONS ?= 3000
ROUNDS ?= 300
JOBS ?= 2
ARGS ?=
PLOT ?=
ONLY ?= connections,storm,slow-consumers,slowloris,flood
# curl and wrk talk to the HTTP door, ip makes a second host for a worker, openssl makes certificates, strace sees, breaks and slows system calls,
# node runs the worker that is written in JavaScript
PROGRAMS := curl wrk ip openssl strace node npm

.PHONY: demo test lint bench bench-micro bench-flat bench-curves bench-peers sim fuzz kills power-loss disk-errors corruption full-disk attack leases chaos load audit programs clean

demo: $(VENV)/ready
	$(BIN)/python examples/demo/run.py

test: $(VENV)/ready programs examples/node/node_modules lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --reruns 2 -rR

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/ready
	$(BIN)/python bench/load/run.py

bench-micro: $(VENV)/ready
	$(BIN)/python -m pytest bench/micro --benchmark-enable --benchmark-columns=min,median,max,rounds

bench-flat: $(VENV)/ready
	$(BIN)/python bench/flat/run.py $(ARGS)

bench-curves: $(VENV)/ready
	$(BIN)/python bench/curves/run.py $(ARGS)

bench-peers: $(VENV)/ready
	$(BIN)/python bench/peers/run.py $(if $(PLOT),--plot) $(ARGS)

sim: $(VENV)/ready
	$(BIN)/python tests/sim/run.py $(if $(UNTIL),--until $(UNTIL),--seeds $(SEEDS))

fuzz: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	$(BIN)/python tests/campaigns/fuzz.py --inputs $(INPUTS)

attack: $(VENV)/ready
	$(BIN)/python tests/campaigns/attacks.py --seconds 10

full-disk: $(VENV)/ready
	$(BIN)/python tests/campaigns/full_disk.py --cycles $(CYCLES)
# what is known about the packages that are installed here; it reports and gates nothing, since a finding may have no fix yet
audit: $(VENV)/ready
	$(PYTHON) -m venv .audit
	.audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	-.audit/bin/pip-audit --progress-spinner off --skip-editable --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
kills: $(VENV)/ready
	$(BIN)/python tests/campaigns/kills.py --kills $(KILLS) --mode $(MODE) --jobs $(JOBS)
	$(BIN)/python tests/campaigns/stale_reports.py
leases: $(VENV)/ready
	$(BIN)/python tests/campaigns/leases.py --record
chaos: $(VENV)/ready
	$(BIN)/python tests/campaigns/chaos.py --rounds $(ROUNDS) --jobs $(JOBS)
power-loss: $(VENV)/ready programs
	$(BIN)/python tests/campaigns/power_loss.py --images $(IMAGES) --jobs $(JOBS)

disk-errors: $(VENV)/ready programs
	$(BIN)/python tests/campaigns/disk_errors.py --runs $(RUNS) --jobs $(JOBS)
load: $(VENV)/ready
	$(BIN)/python tests/campaigns/load.py --only $(ONLY)

corruption: $(VENV)/ready programs
	$(BIN)/python tests/campaigns/corruption.py --mutations $(MUTATIONS) --jobs $(JOBS)

$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq -y python3-venv; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

# Debian packages of the programs that the tests use; only root can install them, and a test that misses one fails and says so
programs:
	@missing=""; for program in $(PROGRAMS); do command -v $$program >/dev/null || missing=yes; done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y curl wrk iproute2 openssl strace nodejs npm; \
	fi

examples/node/node_modules: examples/node/package-lock.json | programs
	@if command -v npm >/dev/null; then cd examples/node && npm ci --silent --no-audit --no-fund --ignore-scripts && touch node_modules; \
	else echo "npm is not installed: the tests of the worker in Node.js will fail"; fi

clean:
	rm -rf $(VENV) examples/node/node_modules .peers .audit .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
