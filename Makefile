# make setup   a .venv with what a run and the tests need
# make demo    train on generated data, in minutes
# make test    lint and tests
# make check   lint alone

PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test check format clean

setup: .venv/ready

# Installed again when a requirements file changes.
.venv/ready: requirements.txt requirements-bucket.txt tests/requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

demo: setup
	$(BIN)/python train.py --inner_size 256 --n_encoder 3 --n_decoder 3 --batch_sz 8 --epochs 80 \
		--alpha 0.05 --alpha_max 0.6 --update --penalty_scheduler log_lambda --alpha_epochs 60

test: check
	$(BIN)/python -m pytest -n 2

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .pytest_cache .ruff_cache
