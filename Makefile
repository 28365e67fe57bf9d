# `make demo` and `make test` need Python 3.11 or newer and make; they create .venv when it is missing or out of date.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

# Nothing here reports home.
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export NO_ALBUMENTATIONS_UPDATE := 1
export RAY_USAGE_STATS_ENABLED := 0
# A crash in a library says where.
export PYTHONFAULTHANDLER := 1

# Markers of tests that take long; see pyproject.toml.
SLOW := benchmark or browser or chaos or cluster or documentation or end_to_end or slow
# Tests are single-threaded. A file stays in one process, so that its tests share a cluster or a server.
TEST_WORKERS ?= 2
PARALLEL := -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help demo demo-s3 test test-fast test-promises test-slow test-gpu storm bench check format docs mlflow
.DEFAULT_GOAL := check

# This list
help:
	@awk '/^# / { text = text substr($$0, 3) " " } \
		/^[a-z0-9-]+:/ { if (text) printf "  make %-14s %s\n", substr($$1, 1, index($$1, ":") - 1), text } \
		!/^# / { text = "" }' Makefile

# Draws scenes, trains for some minutes, segments by words; the last line is a JSON object with the results.
demo: $(INSTALLED)
	@$(BIN)/groupvit demo --json

# The same through an object store on this machine: raw shards, curation, data set, checkpoints, artifacts on s3://.
demo-s3: $(INSTALLED)
	@infra/object_store/start groupvit
	@. ./object-store/environment && $(BIN)/groupvit demo --store s3://groupvit/demo --out runs/demo-s3 --json; \
		status=$$?; infra/object_store/stop; exit $$status

# The tests to run after every edit: the method but for ONNX, and what of pipelines starts neither Ray nor another process
test-fast: $(INSTALLED)
	@$(BIN)/python -m pytest --fast -rfE -m "not ($(SLOW))" -k "not onnx" $(PARALLEL) tests/groupvit tests/pipelines

# All tests that take seconds each
test: $(INSTALLED)
	@$(BIN)/python -m pytest -m "not ($(SLOW))" $(PARALLEL)

# What is promised whatever happens, each once: processes and nodes killed, storage that fails, the chain from end to end
test-promises: $(INSTALLED)
	@$(BIN)/python -m pytest -m "(chaos or end_to_end) and not slow"

# All slow tests: those of test-promises, clusters, browsers, benchmarks, every command of the documentation
test-slow: $(INSTALLED)
	@$(BIN)/python -m pytest -m "$(SLOW)"

# On a machine with a GPU: the same numbers as on CPUs, and speed; results in OUT (default build/gpu)
test-gpu: $(INSTALLED)
	@status=0; for part in 1 2; do \
		$(BIN)/python tests/gpu/check.py --part $$part --out "$(or $(OUT),build/gpu)" || status=1; \
	done; exit $$status

# Storms upon a run on three machines, with the seeds from 0 to SEEDS - 1: processes and machines killed, drained, added
SEEDS ?= 1
storm: $(INSTALLED)
	@STORM_SEEDS=$$(seq -s, 0 $$(($(SEEDS) - 1))) $(BIN)/python -m pytest -q -k storm tests/chaos/test_weather.py

# Every benchmark of tests/performance with short settings, as one table of ratios
bench: $(INSTALLED)
	@$(BIN)/python -m tests.performance.run

# Format, lint, types, and how packages import each other
check: $(INSTALLED)
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/pyright
	@$(BIN)/lint-imports

# Let ruff put things right
format: $(INSTALLED)
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

# The documentation as a site, in build/site
docs: $(INSTALLED)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q -f infra/docs/mkdocs.yml

# The runs of this machine at http://127.0.0.1:5000
mlflow: $(INSTALLED)
	@infra/mlflow/serve

# torch comes first and alone, so that it is the build that the machine's package index gives.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11' >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q 'torch==2.14.1' 'torchvision==0.29.1'
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@
