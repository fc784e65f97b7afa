# make demo | test | test-all | lint | bench     (each sets up what it needs)
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo test test-all lint bench clean

install: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python train.py experiment=demo run_dir=demo
	$(BIN)/python evaluate.py run=outputs/demo
	@echo "Tables and pictures: outputs/demo/evaluation/same/"

test: install
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

test-all: install
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv build *.egg-info
