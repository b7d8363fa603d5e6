# make setup   a .venv with what a run needs
# make demo    compare four alpha schedules on generated data, in minutes
# make test    lint, types and tests
# make test-slow     long tests, such as runs that are interrupted, requeued and resumed
# make test-faults   kills, full disks, broken and hostile files, hundreds of times: half an hour
# make check   lint and types alone
# make bench   measure the speed, as Markdown tables: half an hour on two quiet cores

PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-slow test-faults check bench bench-score bench-cuda format clean

setup: .venv/ready

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Installed again when a requirements file changes.
.venv/ready: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	touch $@

.venv/tests-ready: .venv/ready $(wildcard requirements-*.txt) tests/requirements.txt
	$(PIP) -r tests/requirements.txt
	$(PIP) --no-deps -r requirements-audio-nodeps.txt
	# For W&B's schema of sweep files. In a folder of its own, since it needs another numpy.
	$(PIP) --no-deps --upgrade --target .venv/wandb-sweeps sweeps==0.3.0
	touch $@

demo: setup
	$(BIN)/python -m emaae sweep sweeps/demo.yaml --jobs 2 --out runs/demo
	$(BIN)/python -m emaae promote runs/demo
	$(BIN)/python -m analysis.report runs/demo

test: check
	$(BIN)/python -m pytest -n 3 --dist loadgroup -m "not slow"

test-slow: .venv/tests-ready
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

test-faults: .venv/tests-ready
	$(BIN)/python -m pytest tests/faults --faults

check: .venv/tests-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.convolution
	$(BIN)/python -m benchmarks.many
	$(BIN)/python -m benchmarks.same_science
	$(BIN)/python -m benchmarks.data_start --n_utterances 3000 --repeats 3

# How much sooner the sweeps' recipe reaches a score: hours on one core.
bench-score: setup
	$(BIN)/python -m benchmarks.time_to_score --size 256
	$(BIN)/python -m benchmarks.time_to_score --size 1024 --n_utterances 256 --plain_epochs 40 --our_epochs 6,7,8,12 --alpha_max 0.85 --ramp 0.34

# Needs a GPU.
bench-cuda: setup
	$(BIN)/python -m benchmarks.cuda
	$(BIN)/python -m benchmarks.many --device cuda --precision bf16 --jobs 1,2,4

format: .venv/tests-ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .pytest_cache .ruff_cache
