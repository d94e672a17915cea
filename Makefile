# Each target sets up what it needs: plain pip and make suffice.
PYTHON ?= python3
VENV ?= .venv
LATEST ?= .venv-latest
WORKERS ?= 2
PYPROJECTS := $(wildcard core/pyproject.toml sdk/pyproject.toml plugins/*/pyproject.toml)
PIP := -m pip --disable-pip-version-check install --quiet

.PHONY: demo test test-latest coverage lint bench docs clean

demo: $(VENV)/.demo
	$(VENV)/bin/planish demo --out runs/demo

# Workers share the cores, so each computes on one thread; a module stays on one worker, so its fixtures are made once;
# modules start in the order of `testpaths`, the longest first, so that no worker is left with the demo at the end.
RUN := -n $(WORKERS) --dist loadscope --no-loadscope-reorder --durations=12

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest $(RUN) -m "not gpu"

# Apart from `test`, because tracing slows tests that run model code.
coverage: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest $(RUN) -m "not gpu" --cov --cov-report=term:skip-covered core sdk tests

test-latest: $(LATEST)/.dev
	OMP_NUM_THREADS=1 $(LATEST)/bin/pytest $(RUN) -m "model and not gpu"

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.dev
	for name in ace onnx kerzoo reram reram-protect promptv graph accelgcn maxk; do $(VENV)/bin/planish bench $$name || exit 1; done

docs: $(VENV)/.docs
	$(VENV)/bin/python benchmarks/draw.py
	$(VENV)/bin/mkdocs build --strict --quiet --site-dir site

clean:
	rm -rf $(VENV) $(LATEST) runs site build dist

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "planish needs Python 3.11 or newer; name one with: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: requirements.txt constraints.txt $(PYPROJECTS) | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP) -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt requirements.txt constraints.txt $(PYPROJECTS) | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP) -r requirements-dev.txt
	touch $@ $(VENV)/.demo

$(VENV)/.docs: requirements-docs.txt $(VENV)/.demo
	$(VENV)/bin/python $(PIP) -r requirements-docs.txt
	touch $@

$(LATEST)/.dev: requirements-latest.txt constraints-latest.txt $(PYPROJECTS)
	test -x $(LATEST)/bin/python || $(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/python $(PIP) -r requirements-latest.txt
	touch $@
