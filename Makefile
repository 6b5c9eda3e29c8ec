# Every target makes .venv by itself; Python 3.11 or newer, make and PyPI are all it takes.
# Another interpreter: make demo PYTHON=python3.13

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Tests compute with one thread each, so that every core runs one; what a file's tests share is made once.
PARALLEL := -n auto --maxprocesses 8 --dist loadfile

.PHONY: demo test test-slow test-oldest check bench clean

demo: $(INSTALLED)
	$(BIN)/genzoo demo

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL) -m ""

# At the lower ends of the ranges that pyproject.toml declares.
test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -m pytest $(PARALLEL)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: $(INSTALLED)
	$(BIN)/python -m pytest -m "" -s tests/benchmarks/bench_*.py

clean:
	rm -rf .venv .venv-oldest dist build .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone, so that the version which the constraints name is in place before anything that depends on it
# is looked at.
.venv/.installed: constraints.txt
.venv-oldest/.installed: constraints-oldest.txt
%/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "genzoo needs Python 3.11 or newer and $(PYTHON) is not: name one, as in make PYTHON=python3.13" >&2; exit 1; }
	@$*/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet -c $(filter constraints%,$^) torch
	$*/bin/python -m pip install --quiet -c $(filter constraints%,$^) -e ".[dev]"
	@touch $@
