# make book: the book as HTML.   make test: every check.   Both make .venv where it is missing.
PYTHON ?= python3
VENV := .venv
# Windows keeps its programs in Scripts; see the README for the plain commands without make.
BIN := $(VENV)/bin
# PyTorch's own index has the small CPU build; empty this for a GPU (README). It is asked once, for
# torch alone, so that a machine that cannot reach it loses a moment and takes the default build.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
HTML := _build/html
# Stands for the built book, which `make pdf` and `make zip` build if something has changed since.
BUILT := _build/.built
SOURCES := _config.yml _toc.yml $(shell find book src tests -type f -not -path '*/.*' -not -name '*.pyc')

.DEFAULT_GOAL := book
.PHONY: book pdf zip test unbrowsed lint execute links serve lab bench clean

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --retries 0 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		"$$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.txt)"
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

# --all: an incremental build would keep old stylesheets, and old pages' warnings to itself.
# What was made from an older book goes: it is not to be published beside the new one.
book: $(VENV)/.installed
	rm -f $(BUILT) $(HTML)/*.pdf $(HTML)/*.zip
	$(BIN)/jupyter-book build . --all --quiet --warningiserror --nitpick --keep-going
	@echo "The book is ready: open $(CURDIR)/$(HTML)/index.html"
	@touch $(BUILT)

$(BUILT): $(SOURCES) $(VENV)/.installed
	$(MAKE) book

# The whole book on paper, by Chromium; takes three minutes.
pdf: $(BUILT)
	$(BIN)/python -m book.pdf

# What git keeps, to be unpacked and run elsewhere.
zip: $(BUILT)
	$(BIN)/python -m book.shelf

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# The book, which needs one core, is built beside the tests; then what a browser makes of it (skipped
# where there is no Chromium).
test: lint
	$(MAKE) --jobs=2 unbrowsed book
	$(BIN)/python -m pytest tests/browser --dist=loadgroup

# Unit tests, docstring examples and notebooks in one run (see pyproject.toml).
unbrowsed: $(VENV)/.installed
	$(BIN)/python -m pytest --ignore=tests/browser

# Run every chapter from top to bottom (with the cell for Colab, if _config.yml names a public
# address), store what it printed and drew, and write what follows from it: the pictures on the
# front page, the run times, the pages of the reference.
execute: $(VENV)/.installed
	$(BIN)/python book/colab.py
	$(BIN)/python book/execute.py
	$(BIN)/python book/cover.py
	$(BIN)/python book/fold.py
	$(BIN)/python book/diagram.py
	for page in equations glossary take_home which_training; do \
		$(BIN)/python -m book.$$page || exit 1; done

lab: $(VENV)/.installed
	$(BIN)/jupyter lab book $(if $(filter 0,$(shell id -u)),--allow-root)

# Links that lead out of the book; needs a network, so it is no part of `make test`.
links: $(VENV)/.installed
	$(BIN)/jupyter-book build . --all --builder linkcheck

serve: book
	@echo "Serving the book on http://localhost:8000 (stop with Ctrl-C)"
	$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory $(HTML)

# The peer is installed for the benchmark alone, beside the environment and not into it. The
# trainings take about forty minutes on two cores, the error bars four hours on one.
bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .bench normflows==1.7.3 \
		bm3d==4.0.3 bm4d==4.2.5
	PYTHONPATH=.bench $(BIN)/python tests/benchmarks/network.py
	$(BIN)/python tests/benchmarks/training_costs.py
	$(BIN)/python tests/benchmarks/trainings.py
	$(BIN)/python -m tests.benchmarks.error_bars
	$(BIN)/python tests/benchmarks/one_network.py
	$(BIN)/python tests/benchmarks/nonlinear.py
	$(BIN)/python -m tests.benchmarks.nonlinear_eight
	PYTHONPATH=.bench $(BIN)/python -m tests.benchmarks.images
	$(BIN)/python -m tests.benchmarks.own_problem

clean:
	rm -rf _build .bench .pytest_cache .ruff_cache .hypothesis
