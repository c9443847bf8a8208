PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-real check format bench clean

# A virtual environment with the versions in constraints.txt, made once.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# A task folder, a run on SmolLM2-135M, the result table and the report: about twelve minutes on two cores.
demo: $(INSTALLED)
	test -d demo || $(BIN)/kshot init demo
	OMP_PROC_BIND=true $(BIN)/kshot run demo/task.yaml --out demo/run # bound threads: a tenth faster on two cores

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m 'not real'
	$(BIN)/pytest -m real

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Every benchmark, each with its JSON under benchmarks/results/.
bench: $(INSTALLED)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv demo
