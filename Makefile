# make demo    what taskq does, on real input            make bench        end to end, against the bare data flow
# make test    ruff, mypy and all tests                   make bench-micro  single stages
# make sim     more seeds of the simulation (SEEDS=0:2000)
# make power-loss   images of what a power loss may leave (IMAGES=10000)
# make disk-errors  syncs and writes that fail (RUNS=600)
# make corruption   damaged files (MUTATIONS=3000)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 0:2000
IMAGES ?= 10000
RUNS ?= 600
MUTATIONS ?= 3000
JOBS ?= 2
# curl and wrk talk to the HTTP door, ip makes a second host for a worker, strace sees and breaks system calls
PROGRAMS := curl wrk ip strace

.PHONY: demo test lint bench bench-micro sim power-loss disk-errors corruption programs clean

demo: $(VENV)/ready
	$(BIN)/python examples/demo/run.py

test: $(VENV)/ready programs lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/ready
	$(BIN)/python bench/load/run.py

bench-micro: $(VENV)/ready
	$(BIN)/python -m pytest bench/micro --benchmark-enable --benchmark-columns=min,median,max,rounds

sim: $(VENV)/ready
	$(BIN)/python tests/sim/run.py --seeds $(SEEDS)

power-loss: $(VENV)/ready programs
	$(BIN)/python tests/campaigns/power_loss.py --images $(IMAGES) --jobs $(JOBS)

disk-errors: $(VENV)/ready programs
	$(BIN)/python tests/campaigns/disk_errors.py --runs $(RUNS) --jobs $(JOBS)

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
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y curl wrk iproute2 strace; \
	fi

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
