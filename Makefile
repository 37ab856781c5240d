# `make demo` and `make test` need Python 3.11 or newer and make, nothing else: they set up .venv on first use and
# again only when pyproject.toml or constraints.txt change. `make setup` does only that, for all of them.
#
#   make demo PYTHON=python3.12                                        another Python
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu         torch without CUDA (a small download)

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
TESTS ?= tests
ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile --constraint constraints.txt
MODEL := examples/pmr/model.py:factory
RULES := examples/pmr/rules/late.yaml

.PHONY: setup demo test test-all test-versions lint types format docs pictures evidence clean help

help:
	@echo "make setup   set up .venv for all that follows, and nothing else (the others do so on first use)"
	@echo "make demo    inspect, rewrite and train the example, about 1 minute (no download of data)"
	@echo "make test    run the tests, 6 to 10 minutes on two cores;  make test-all: the slow ones, too"
	@echo "make test-versions    the core tests with other versions, floors to newest (SETS=newest: one set)"
	@echo "make lint    ruff;  make types: mypy;  make format: rewrite in ruff's format;  make clean: remove .venv"
	@echo "make evidence    the experiments behind docs/results.md and the figure of README.md, into a new folder, 3 minutes"
	@echo "                 (ARGS=--quick: rough figures in less than one; ARGS=--update-docs: over the files of the docs)"
	@echo "make docs    the documentation as a site, in site/"
	@echo "make pictures    the pictures of docs/ (PICTURES=clip: one of them); needs Chromium"

setup: $(VENV)/.for-demo $(VENV)/.for-development
	@echo "$(VENV) is set up"

demo: $(VENV)/.for-demo
	@echo; echo "== Where do the modalities of the example meet?  (regbn-surgery inspect $(MODEL))"
	@$(BIN)/regbn-surgery inspect $(MODEL)
	@echo; echo "== What would the rules change?  (regbn-surgery show $(MODEL) $(RULES))"
	@$(BIN)/regbn-surgery show $(MODEL) $(RULES)
	@echo; echo "== Training without RegBN, with these rules, and with their norms alone as a control"
	@echo "   (python examples/pmr/PMR.py --compare none late late_control --epochs 3)"
	@$(BIN)/python examples/pmr/PMR.py --compare none late late_control --epochs 3

test: $(VENV)/.for-development
	@$(BIN)/python -m pytest -n $(WORKERS) -m "not slow" $(TESTS)

test-all: $(VENV)/.for-development
	@$(BIN)/python -m pytest -n $(WORKERS) $(TESTS)

# Needs the Pythons that it is to try, and downloads torch for each set: see tests/versions.py.
test-versions:
	@$(PYTHON) tests/versions.py $(SETS)

lint: $(VENV)/.for-development
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --exclude '*.md' .

types: $(VENV)/.for-development
	@$(BIN)/mypy

format: $(VENV)/.for-development
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format --exclude '*.md' .

# Needs no network. To search in it, serve it: python -m http.server -d site
docs: $(VENV)/.for-development
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Open site/index.html"

# Chromium is no Python package: `apt-get install chromium`, where the script does not find one.
pictures: $(VENV)/.for-development
	@$(BIN)/python docs/make_pictures.py $(PICTURES)

# Both experiments draw their data from seeds; nothing is downloaded. Into a new folder, runs/evidence-N, and over the
# files of the documentation only with ARGS=--update-docs.
evidence: $(VENV)/.for-demo
	@$(BIN)/python benchmarks/make_evidence.py $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Each stamp is written last, so that an interrupted set-up is taken up again rather than believed.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; '$(PYTHON)' is not. Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@touch $@

# torch by itself and first: where the index offers a CPU build of this version, pip takes that one here.
$(VENV)/.torch: $(VENV)/.created constraints.txt
	@echo "setting up $(VENV): torch"
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch==2.13.0
	@touch $@

$(VENV)/.for-demo: $(VENV)/.torch pyproject.toml
	@echo "setting up $(VENV): the package and its examples"
	@$(PIP) --quiet --editable '.[examples]'
	@touch $@

$(VENV)/.for-development: $(VENV)/.torch pyproject.toml
	@echo "setting up $(VENV): the package, its tests and tools"
	@$(PIP) --quiet --editable '.[dev]'
	@touch $@
