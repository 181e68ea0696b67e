# Two commands: `make tour` (set up and see it work) and `make test`. Everything lives in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: tour test test-all lint bench install oracles peers clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tenfold needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $@

tour: install
	$(BIN)/tenfold tour

# First everything with its shapes checked, then what torch.compile and torch.export need without the checks.
# One thread for each test process: two that share cores wait for each other at every operation.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

test: install
	$(PYTEST) -m 'not slow and not oracle and not compiled'
	JAXTYPING_DISABLE=1 $(PYTEST) -m 'compiled and not slow and not oracle'

test-all: install oracles
	$(PYTEST) -m 'not oracle and not compiled' --timeout 1800
	JAXTYPING_DISABLE=1 $(PYTEST) -m 'compiled and not oracle' --timeout 1800
	PYTHONPATH=.oracles $(PYTEST) -m oracle --timeout 1800

# Oracles stand beside the environment, not in it: resolved with their dependencies they would replace torch.
oracles: .oracles/.installed

.oracles/.installed: tests/oracles.txt $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .oracles -r tests/oracles.txt
	touch $@

# What benchmarks run beside tenfold and start as another process: a whole environment.
peers: .peers/.installed

.peers/.installed: tests/peers.txt
	test -x .peers/bin/python || $(PYTHON) -m venv .peers
	.peers/bin/pip install --quiet --disable-pip-version-check -r tests/peers.txt
	touch $@

lint: install
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/lint-imports
	$(BIN)/pyright

bench: install
	$(BIN)/tenfold bench all

clean:
	rm -rf $(VENV) .oracles .peers build dist
