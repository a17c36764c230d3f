# Five verbs. Everything they make lives in .venv, dist, reports, runs and tool caches.
#
#   make demo    install into .venv and run the whole way once, from a simulated mouse to a trigger
#   make test    install the test extra too, run every check and every test
#   make check   ruff, mypy and import-linter only
#   make test-soak   stream 241 neurons at 30 Hz through the whole service; SOAK_SECONDS=60 is shorter than 5 minutes
#   make bench   measure what docs/benchmarks.md reports of the installation
#   make clean   remove .venv, build products and caches; reports and runs stay
#
# Another interpreter: make test PYTHON=/path/to/python3.12

PYTHON ?= python3
PY = .venv/bin/python
# Also holds for the isolated environment in which pip builds the package itself.
INSTALL = PIP_CONSTRAINT=constraints.txt $(PY) -m pip install --quiet

.PHONY: demo test test-soak check bench clean

demo: .venv/run.stamp
	.venv/bin/quantformer demo

test: check
	$(PY) -m pytest

test-soak: .venv/dev.stamp
	$(PY) -m pytest tests/test_soak.py -m soak

check: .venv/dev.stamp
	$(PY) -m ruff check
	$(PY) -m mypy
	$(PY) -m mypy deploy
	.venv/bin/lint-imports

bench: .venv/run.stamp
	$(PY) deploy/measure_import.py

clean:
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/run.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "quantformer needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable '.[serve,train]'
	touch .venv/run.stamp

.venv/dev.stamp: .venv/run.stamp
	$(INSTALL) --editable '.[serve,train,dev]'
	touch .venv/dev.stamp
