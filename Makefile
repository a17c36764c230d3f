# Everything these make lives in .venv, dist, reports, runs and tool caches.
#
#   make demo    install into .venv and run the whole way once, from a simulated mouse to a trigger
#   make test    install the test extra too, run every check and every test but the slow ones
#   make check   ruff, mypy and import-linter only
#   make test-slow   the tests of more than ten seconds each: the demo, real verbs, several processes, Ray
#   make test-soak   stream 241 neurons at 30 Hz through the whole service; SOAK_SECONDS=60 is shorter than 5 minutes
#   make test-allen   read Allen files with allensdk and with our reader, and compare; ALLEN_DATA=DIR
#   make bench   measure what docs/benchmarks.md reports of the installation, of training and of inference; some minutes
#   make bench-engine   measure the engine's table, about two hours with nothing else running; PART=start,kills for some of it
#   make clean   remove .venv, build products and caches; reports and runs stay
#
# Another interpreter: make test PYTHON=/path/to/python3.12

PYTHON ?= python3
ALLEN_PYTHON ?= python3.11
PY = .venv/bin/python
# Also holds for the isolated environment in which pip builds the package itself.
INSTALL = PIP_CONSTRAINT=constraints.txt $(PY) -m pip install --quiet

.PHONY: demo test test-slow test-soak test-allen check bench bench-engine clean

demo: .venv/run.stamp
	.venv/bin/quantformer demo

# Two files at a time: whatever a test starts is its own, and none judges time.
test: check
	$(PY) -m pytest -n 2 --dist loadfile

test-slow: .venv/dev.stamp
	$(PY) -m pytest -m "slow and not soak"

test-soak: .venv/dev.stamp
	$(PY) -m pytest tests/test_soak.py -m soak

check: .venv/dev.stamp
	$(PY) -m ruff check
	$(PY) -m mypy
	$(PY) -m mypy deploy
	.venv/bin/lint-imports

bench: .venv/run.stamp
	$(PY) deploy/measure_import.py
	$(PY) deploy/measure_training.py
	$(PY) deploy/measure_inference.py

bench-engine: .venv/run.stamp
	$(PY) deploy/measure_engine.py $(if $(PART),--part $(PART))

clean:
	rm -rf .venv .venv-allen dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/run.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "quantformer needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable '.[serve,train]'
	touch .venv/run.stamp

.venv/dev.stamp: .venv/run.stamp
	$(INSTALL) --editable '.[serve,train,compare,ray,dev]'
	touch .venv/dev.stamp

# allensdk pins an old numpy, so it lives in an environment of its own; ALLEN_DATA=DIR names fetched files.
test-allen: .venv/dev.stamp .venv-allen/run.stamp
	$(PY) deploy/compare_allen.py --allen-python .venv-allen/bin/python $(ALLEN_DATA)

.venv-allen/run.stamp: deploy/requirements-allen.txt
	$(ALLEN_PYTHON) -m venv .venv-allen
	.venv-allen/bin/python -m pip install --quiet --requirement deploy/requirements-allen.txt
	touch $@
