# `make` or `make help` lists what there is.
VENV ?= .venv
PY := $(VENV)/bin/python
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	&& echo $$p && break; done)
# One more than cores: most tests wait for processes of theirs.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
COMPILE = $(VENV)/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate

.PHONY: help setup setup-serverless check test pytest soak format docs lock run benchmarks
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.lock $(VENV)/rclone/rclone ## Make the development environment from its lock file

$(VENV)/.lock: requirements/dev.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: set PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

# An S3 server for the tests; without it they are skipped, which REQUIRE_SERVICES=1 makes a failure.
$(VENV)/rclone/rclone: requirements/rclone.txt | $(VENV)/.lock
	-$(PY) -m tests.support.rclone

setup-serverless: $(VENV)-serverless/.lock ## Make the serverless worker's environment from its lock file

# Of its own: RunPod's SDK and the gateway's aioboto3 want different versions of botocore.
$(VENV)-serverless/.lock: requirements/serverless.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: set PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv $(VENV)-serverless
	$(VENV)-serverless/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		-r requirements/serverless.txt
	@touch $@

check: setup ## Lint, types, import contracts, shell scripts
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/shellcheck startup.sh .ci/run examples/*.sh deploy/*.sh
	$(VENV)/bin/pyright --pythonpath $(PY)

pytest: setup setup-serverless ## The tests alone; ARGS="-k name" narrows them, WORKERS=0 runs them in one process
	$(PY) -m pytest -n $(WORKERS) --dist worksteal --reruns 1 $(ARGS)

test: check pytest ## Everything that must hold: checks, then tests

soak: setup ## Kill everything at random under 300 jobs; ARGS="--seed 1 --sqlite" (minutes)
	$(PY) -m tests.soak $(ARGS)

format: setup ## Let ruff format and mend what it can
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

docs: setup ## Write the generated pages of docs/ anew
	$(PY) -m gateway docs

lock: ## Resolve the lock files anew
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet uv
	$(COMPILE) --extra gateway --extra gpu -o requirements/run.txt
	$(COMPILE) --extra gpu --extra serverless -o requirements/serverless.txt
	$(COMPILE) --extra dev -o requirements/dev.txt

run: ## Start everything; the same as ./startup.sh
	./startup.sh

benchmarks: setup ## Measure the overhead against a bare client, the job engine, and large files
	$(PY) -m benchmarks.overhead --write benchmarks/overhead.md
	$(PY) -m benchmarks.jobs --write benchmarks/jobs.md
	$(PY) -m benchmarks.media --write benchmarks/media.md
