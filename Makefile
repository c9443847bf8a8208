PYTHON ?= python3
BIN := .venv/bin
RUNS := .venv/.runs
DEVELOPS := .venv/.develops
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt

.PHONY: demo test check format bench docs clean

# A virtual environment with the versions in constraints.txt: what the demo needs, and what a developer needs besides.
$(RUNS): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) --editable '.[demo,report]'
	touch $@

$(DEVELOPS): $(RUNS)
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@

# A task folder, a run on SmolLM2-135M, the result table and the report: a quarter of an hour on two cores from nothing.
demo: $(RUNS)
	test -d demo || $(BIN)/kshot init demo
	OMP_PROC_BIND=true $(BIN)/kshot run demo/task.yaml --out demo/run # bound threads: a tenth faster on two cores

test: $(DEVELOPS)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m 'not real and not slow and not browser'
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m 'slow and not browser'
	OMP_NUM_THREADS=1 $(BIN)/pytest -m browser
	$(BIN)/pytest -m real

check: $(DEVELOPS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEVELOPS)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Every benchmark that needs no data of its own, each with its JSON under benchmarks/results/: about an hour and a half.
bench: $(DEVELOPS)
	for name in decoding demo_seeds mixture serving similarity training; do $(BIN)/python benchmarks/$$name.py || exit 1; done

# The documentation as a site that opens from a disk: site/index.html.
docs: $(DEVELOPS)
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --strict --clean

clean:
	rm -rf .venv demo site
