# Every target works alone on a machine that has nothing but make and Python 3.10 or newer.
# PYTHON=python3.12 or PYTHON=3.12 chooses one; .ci/install says which is taken without it.
PYTHON ?=
PYTEST_ARGS ?=

BIN := .venv/bin
PYTEST := $(BIN)/pytest -q -n 2 --dist loadgroup -p no:logging
# Test files that hold golden text, inline or under tests/golden.
GOLDEN_TESTS = $(shell grep -rlE 'check_golden|check_inline|expecttest' --include='test_*.py' tests)

.PHONY: demo check test test-all goldens bench docs format clean static installed-demo installed-dev

demo: installed-demo
	$(BIN)/python examples/demo.py

# The inner loop: format, lint, types and the tests of the passes, without the slow ones.
check: static
	$(PYTEST) -m "not slow" tests/passes

test: static
	$(PYTEST) --durations=15 $(PYTEST_ARGS)

# All cases of the long sweeps.
test-all: static
	$(PYTEST) --durations=15 --all $(PYTEST_ARGS)

static: installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

goldens: installed-dev
	EXPECTTEST_ACCEPT=1 $(BIN)/pytest -q $(GOLDEN_TESTS)
	find tests -name '*.py.bak' -delete # expecttest's copies of what it changed: git has them

bench: installed-dev
	$(BIN)/python -m benchmarks

# The site of the pages in docs/, into out/site. Its tools have an environment of their own.
docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

.venv-docs/.installed: pyproject.toml
	$(or $(PYTHON),python3) -m venv .venv-docs
	.venv-docs/bin/pip install -q --disable-pip-version-check mkdocs-material "mkdocstrings[python]" ruff
	touch $@

format: installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-docs build dist *.egg-info .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

installed-demo:
	@sh .ci/install demo "$(PYTHON)"

installed-dev:
	@sh .ci/install dev,demo "$(PYTHON)"
