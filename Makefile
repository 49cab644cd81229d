# Every target works alone on a machine that has nothing but Python 3.11 and make.
PYTHON ?= python3.11
PYTEST_ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
DEMO_STAMP := .venv/.demo
# Test files that hold golden text, inline or under tests/golden.
GOLDEN_TESTS = $(shell grep -rlE 'check_golden|check_inline|expecttest' --include='test_*.py' tests)

.PHONY: demo test goldens bench format clean

demo: $(DEMO_STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest -q -n 2 --dist loadgroup -p no:logging --durations=15 $(PYTEST_ARGS)

goldens: $(STAMP)
	EXPECTTEST_ACCEPT=1 $(BIN)/pytest -q $(GOLDEN_TESTS)
	find tests -name '*.py.bak' -delete # expecttest's copies of what it changed: git has them

bench: $(STAMP)
	$(BIN)/python -m benchmarks

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist *.egg-info .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEMO_STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[demo]"
	touch $(DEMO_STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev,demo]"
	mkdir -p .venv/typing/pab_compile # what pyright reads (see pyproject.toml)
	ln -sfn ../../../pab_compile/__init__.py .venv/typing/pab_compile/__init__.py
	ln -sfn ../../../passes .venv/typing/pab_compile/passes
	touch $(STAMP)
