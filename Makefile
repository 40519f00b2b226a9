# Two commands on a fresh machine: `make demo` and `make test`. Each makes `.venv` first when it is missing.
PYTHON ?= python3
# Tests at once; most of them start processes of their own.
JOBS ?= 2
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo test format bench clean

demo: $(STAMP)
	$(BIN)/consilium demo

test: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n $(JOBS) --dist worksteal

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Writes the tables and figures of the README; several hours on two cores.
bench: $(STAMP)
	$(BIN)/python simulations/benchmarks/all.py

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "consilium needs Python 3.11 or newer; this is " + sys.version.split()[0] + ": set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--config-settings editable_mode=compat --editable '.[dev]'
	touch $(STAMP)
