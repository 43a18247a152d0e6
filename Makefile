# Two commands for a stranger: `make demo` and `make test`. Both set up .venv first (uv when present, else pip).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test test-fast lint docs web clean

help:
	@echo "make demo   the whole job on the built-in phantom: teach, distill, deploy, predict, report"
	@echo "make test   the test suite"
	@echo "make test-fast   the tests that take seconds"
	@echo "make lint   ruff and pyright"
	@echo "make docs   the pages of docs/ as a site in site/"
	@echo "make web    the viewer for the page of samkd serve, with npm; packages written after it carry it"

# `samkd` is this folder: .venv/src/samkd links to it, so that Python, editors and the type checker find it by its path.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "samkd needs Python 3.11 to 3.13; run make PYTHON=python3.12"; exit 1; }
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --python $(PYTHON) .venv && \
	  uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[openvino,onnx,dicom,sign,dev]'; \
	else \
	  $(PYTHON) -m venv .venv && \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[openvino,onnx,dicom,sign,dev]'; \
	fi
	@mkdir -p .venv/src && ln -sfn ../.. .venv/src/samkd
	@echo ../../../src > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/samkd_source.pth
	@touch $(READY)

demo: $(READY)
	$(BIN)/samkd demo

# A thread and a whole test file for each worker; more threads than cores would wait for one another. The files keep the
# order of tests/conftest.py, the long ones first. A worker that crashes ends the run: xdist would wait for ever for the
# rest of its file.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile \
  --no-loadscope-reorder --max-worker-restart 0

test: $(READY)
	$(PYTEST)

test-fast: $(READY)
	$(PYTEST) -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Every link is checked; the references of the command line and of the config are written first, from samkd itself.
docs: $(READY)
	@if command -v uv >/dev/null 2>&1; then \
	  uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[docs]'; \
	else \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'; \
	fi
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

# NiiVue, pinned, as one file for the page: built in build/, so that nothing of npm lies among the sources.
PAGE := deploy/runtime/serve/page
VIEWER := $(wildcard deploy/runtime/serve/viewer/*)
web: $(PAGE)/vendor/niivue.js

$(PAGE)/vendor/niivue.js: $(VIEWER)
	@command -v npm >/dev/null || { echo "make web needs Node.js and npm (Debian: apt-get install nodejs npm)"; exit 1; }
	@mkdir -p build/viewer && cp $(VIEWER) build/viewer
	@cd build/viewer && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null && \
	  node bundle.js ../../$(PAGE)/vendor
	@touch $@ && echo "$@"

clean:
	rm -rf .venv build dist *.egg-info runs site $(PAGE)/vendor
