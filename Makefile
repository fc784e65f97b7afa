# make demo | test | test-all | lint | bench | bench-gpu     (each sets up what it needs)
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo test test-all lint bench bench-gpu clean

install: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python train.py experiment=demo run_dir=demo
	$(BIN)/python evaluate.py run=outputs/demo
	@echo "Tables and figures: outputs/demo/evaluation/synthetic-test-score-full/"

test: install
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

test-all: install
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv-bench/ready: pyproject.toml constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[baselines]' --requirement benchmarks/requirements.txt
	touch $@

# one thread unless a script says otherwise; outputs/benchmarks/, then docs/results/performance.md
BENCHMARKS := startup warp local_ncc cost_volume dvf metrics volumes loading pair training allocator

bench: export OMP_NUM_THREADS := 1
bench: .venv-bench/ready
	set -e; for name in $(BENCHMARKS); do .venv-bench/bin/python benchmarks/$$name.py; done
	.venv-bench/bin/python benchmarks/tables.py

bench-gpu: .venv-bench/ready
	set -e; for name in warp local_ncc cost_volume; do \
		.venv-bench/bin/python benchmarks/$$name.py --device cuda --output outputs/benchmarks-gpu; done
	set -e; for how in '32' 'bf16' '16' '32 --compile 1' 'bf16 --compile 1'; do \
		.venv-bench/bin/python benchmarks/training.py --device cuda --output outputs/benchmarks-gpu \
			--precision $$how; done

clean:
	rm -rf .venv .venv-bench build *.egg-info
