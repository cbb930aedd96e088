# Two commands on a fresh machine with Python 3.11+: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-avx2 lint bench clean

demo: .venv/demo
	$(BIN)/xnor-rrm demo

test: .venv/test
	$(BIN)/python -m pytest

# The kernels again on a target without AVX-512: their plain forms, and vectors split in two.
test-avx2: .venv/test
	NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+avx2,+fma \
		$(BIN)/python -m pytest tests/test_kernels.py tests/test_tiny.py

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# Types are checked as installed: kernels/ is xnor_rrm.kernels only there.
	rm -rf build/typed && $(BIN)/pip install --quiet --no-deps --target build/typed .
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml --package xnor_rrm

bench: .venv/test
	$(BIN)/python benchmarks/run.py

.venv/%: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
