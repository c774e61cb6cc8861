# make demo    what taskq does, on real input            make bench        end to end, against the bare data flow
# make test    ruff, mypy and all tests                   make bench-micro  single stages
# make sim     more seeds of the simulation (SEEDS=0:2000, or UNTIL=10000: go on with the ledger)
# make fuzz    foreign bytes for the parsers (INPUTS=10000000), guided by coverage; goes on with the ledger

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 0:2000
UNTIL ?=
INPUTS ?= 10000000
JOBS ?= 2
# curl and wrk talk to the HTTP door, ip makes a second host for a worker
PROGRAMS := curl wrk ip

.PHONY: demo test lint bench bench-micro sim fuzz programs clean

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
	$(BIN)/python tests/sim/run.py $(if $(UNTIL),--until $(UNTIL),--seeds $(SEEDS))

fuzz: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	$(BIN)/python tests/campaigns/fuzz.py --inputs $(INPUTS)

$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq -y python3-venv; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

# Debian packages of the programs that the tests use; only root can install them, and a test that misses one fails and says so
programs:
	@missing=""; for program in $(PROGRAMS); do command -v $$program >/dev/null || missing=yes; done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y curl wrk iproute2; \
	fi

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
