# `make run` and `make test` are all that a fresh machine with Python 3.11 needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs
# Where else to look for PyTorch, e.g. the index of its CPU builds: a tenth of the download on Linux.
TORCH_INDEX ?=
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt $(INDEX) --editable

.PHONY: run test torture mutants lint types check bench combinations rehearsal docs gpu gpu-quarter clean

run: $(RUN)
	$(BIN)/repro run paper=dgc

# Tests in a browser need Debian's chromium, those of clusters a Slurm (tests/slurm/start_slurm.sh
# starts one): where they are missing, these tests are left out.
WITHOUT := --ignore tests/benchmarks $(if $(shell which chromium),,-m "not browser")

test: check
	$(BIN)/pytest -n 2 --dist loadgroup $(WITHOUT)

# Accidents by the hundred: kills, flipped bits, full disks, made-up configs and command lines.
torture: $(DEV)
	REPRO_TORTURE=1 $(BIN)/pytest -q -m torture

# Turns signs, comparisons and extremes in rooms and methods, ten in each, and says which no test of
# theirs notices: an hour. It fails if 10 % of those in rooms, or 5 % in methods, are not noticed.
# More of one paper: make mutants paper=dgc.
mutants: $(DEV)
	$(BIN)/python tests/support/mutants.py $(if $(paper),--count 40 $(paper))

check: lint types

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The sources lie in four folders and are one package: mypy sees them as they are installed.
PACKAGE := build/types/repro
types: $(DEV)
	rm -rf $(PACKAGE) && mkdir -p $(PACKAGE)
	ln -s $(CURDIR)/src/repro/* $(CURDIR)/cli $(CURDIR)/conf $(CURDIR)/experiments $(PACKAGE)
	$(BIN)/mypy $(PACKAGE) tests examples

# Alone on the machine, because these measure speed.
bench: $(DEV)
	$(BIN)/pytest -m benchmark -s tests/benchmarks

# Tries every method on every paper and writes docs/combinations.md.
combinations: $(RUN)
	$(BIN)/python -m repro.report.combinations

# Rehearses every full scale, reduced to two cores, and writes docs/full-scale.md as it goes on; those
# of some papers: make rehearsal paper="dgc man"; what the page does not have: paper=--missing.
rehearsal: $(RUN)
	$(BIN)/python -m repro.report.full_scale $(paper)

# The documentation site: build/site/index.html opens in a browser, without a server.
docs: $(DOCS)
	$(BIN)/python -m repro.report.site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The same numbers on a GPU as without one.
gpu: $(DEV)
	$(BIN)/pytest -m gpu tests/gpu

# Ten minutes on a GPU: what of these tests takes half of them, and the full scales as they are that
# docs/full-scale.md does not have; the next ten minutes go on from there.
gpu-quarter: $(DEV)
	-timeout 280 $(BIN)/pytest -m gpu -q tests/gpu
	timeout 310 $(BIN)/python -m repro.report.full_scale --whole --missing --minutes 4

clean:
	rm -rf $(VENV) build src/*.egg-info

$(VENV):
	$(PYTHON) -m venv $(VENV)

$(RUN): pyproject.toml setup.py constraints.txt | $(VENV)
	$(INSTALL) '.[data]'
	touch $@

$(DEV): $(RUN)
	$(INSTALL) '.[dev]'
	touch $@

$(DOCS): $(RUN)
	$(INSTALL) '.[docs]'
	touch $@
