# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
# Everything the demo makes, Prefect's database included, stays below this folder.
STATE := .requant
# Processes that test at once.
TESTS ?= 4
# Threads that spin long while they wait fight the Prefect server for the cores.
export GOMP_SPINCOUNT ?= 1000

.PHONY: demo real test chaos lint bench nights up down clean

demo: .venv/ready
	PREFECT_HOME=$(CURDIR)/$(STATE)/prefect $(BIN)/requant run configs/tiny.yaml

# The same on a real pretrained model, fetched once: a quarter of an hour.
real: .venv/ready-real
	$(BIN)/python -m benchmarks.real_model fetch
	PREFECT_HOME=$(CURDIR)/$(STATE)/prefect $(BIN)/requant run configs/smollm2-135m.yaml
	$(BIN)/python -m benchmarks.real_model answers

test: .venv/ready-dev lint
	# A tiny model has no work for a second thread. Twice as many processes as cores, because those
	# that test servers wait more than they compute; a file stays together, as it shares a machine.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTS) --dist loadfile --no-loadscope-reorder

# Kills and full disks, N in each place; the same SEED draws the same moments. N=10: a quarter of an hour.
N ?= 10
SEED ?= 1
chaos: .venv/ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --kills $(N) --seed $(SEED)

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

bench: .venv/ready
	$(BIN)/python -m benchmarks

# Nine nights of real text by every policy, by hand and from scratch; it goes on where it was stopped.
BASE ?= tiny
nights: .venv/ready-real
	test $(BASE) != smollm2 || $(BIN)/python -m benchmarks.real_model fetch
	$(BIN)/python -m benchmarks.nights --base $(BASE)

# Prefect, MLflow and a worker on this machine; `make down` stops them, what they know survives.
up: .venv/ready
	$(BIN)/requant up --state $(STATE)

down: .venv/ready
	$(BIN)/requant down --state $(STATE)

clean:
	rm -rf .venv $(STATE)

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

.venv/ready-real: .venv/ready
	$(BIN)/pip install -q -c constraints.txt -e '.[real]'
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@
