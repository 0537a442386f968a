# Two commands: `make all` and `make test`. The environment comes from the lock file.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
# Relative, and no script of bin/: neither cares for a space or a quote in the path of this folder.
RUN := $(VENV)/bin/python -m
CORES ?= 8
CONFIG ?= config/config.yaml
PORT ?= 5000
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: all env clusters smoke test test-thorough test-slow test-network test-gpu test-oldest thorough mutate lint format lock schema faults ui report clean

all: env
	$(RUN) blast check "$(CONFIG)"
	$(RUN) snakemake --cores $(CORES) all --configfile "$(CONFIG)"
	@echo "pictures and tables are in paper_figures/; 'make ui' shows the runs"

env: $(VENV)/.done

# The lock holds every package with its hash, so pip has nothing to resolve.
$(VENV)/.done: requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}: set PYTHON=python3.11")'
	@echo "installing the locked environment into $(VENV) (about 6 GB, 3 minutes)"
	"$(PYTHON)" -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(VENV)/bin/python -m pip check
	@touch $@

smoke: env
	$(RUN) snakemake --cores $(CORES) all --configfile config/smoke.yaml

# Snakemake's plugins for the profiles of Slurm and Kubernetes. Snakemake imports them at each start (1.6 core-seconds), so
# they are installed on request only.
clusters: $(VENV)/.clusters

$(VENV)/.clusters: requirements-clusters.lock $(VENV)/.done
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-clusters.lock
	$(VENV)/bin/python -m pip check
	@touch $@

# Tests that any machine runs in minutes. Those that take longer than most of them are thorough: see tests/support/thorough.py.
FAST := not slow and not gpu and not browser and not network
test: env
	$(RUN) pytest -n 2 --dist loadfile -m "$(FAST) and not thorough"

test-thorough: env
	$(RUN) pytest -n 2 --dist loadfile -m "$(FAST) and thorough"

test-slow: env
	$(RUN) pytest -n 2 --dist loadfile -m "(slow or browser) and not gpu and not network" $(MORE)

# Which tests are thorough, by the times of a run on this machine.
thorough: env
	$(RUN) pytest -n 2 --dist loadfile -m "$(FAST)" -p thorough --find-thorough

test-network: env
	$(RUN) pytest -m network

test-gpu: env
	$(RUN) pytest -m gpu

# The oldest versions that GPU machines may have, without the packages of the workflow. The interpreter of this Triton
# makes scalars of arrays with one element, which NumPy 2.4 refuses.
OLDEST := torch==2.11.0 torchvision==0.26.0 triton==3.6.0 transformers==5.17.0
test-oldest:
	"$(PYTHON)" -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check $(OLDEST) hypothesis pytest pytest-timeout pytest-xdist "setuptools>=77" "numpy<2.4"
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	.venv-oldest/bin/python -m pytest -n 2 -m "$(FAST)" tests/kernels tests/block_sparse tests/layers \
		tests/model tests/tensor_parallel tests/checkpoint tests/sparsity tests/training tests/generation tests/test_library_in_five_lines.py \
		tests/evaluation/test_scoring.py tests/benchmark/providers/test_peers.py tests/benchmark/inputs/test_weights.py
	.venv-oldest/bin/python -m pytest -n 2 -m "slow and not gpu" tests/tensor_parallel tests/block_sparse tests/sparsity

# Changes single operators of the library and of the analysis, and asks whether a test notices. It takes about an hour,
# goes on where it was stopped, and writes the survivors to .cache/mutation/report.md.
MUTANTS ?= 300
SEED ?= 1
mutate: env .cache/mutation/env/.done .cache/mutation/executed/.done
	nice -n 19 .cache/mutation/env/bin/python tests/mutation/mutants.py --count $(MUTANTS) --seed $(SEED) > .cache/mutation/mutants.json
	$(VENV)/bin/python tests/mutation/mutate.py .cache/mutation/mutants.json --workplace .cache/mutation

.cache/mutation/env/.done:
	"$(PYTHON)" -m venv .cache/mutation/env
	.cache/mutation/env/bin/python -m pip install --quiet --disable-pip-version-check cosmic-ray==8.7.0
	@touch $@

# Which test files run which lines; remove the folder to record it anew. A test that fails here is no obstacle.
.cache/mutation/executed/.done: $(VENV)/.done
	-$(RUN) pytest -n 2 --dist loadfile -m "$(FAST)" -p executed --executed $(@D)
	@touch $@

lint: env
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) snakefmt --check --line-length 120 Snakefile workflow
	$(RUN) mypy

format: env
	$(RUN) ruff check --fix .
	$(RUN) ruff format .
	$(RUN) snakefmt --line-length 120 Snakefile workflow

UV := .cache/uv/bin/uv --native-tls pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock" --quiet
lock:
	"$(PYTHON)" -m venv .cache/uv && .cache/uv/bin/python -m pip install --quiet uv
	$(UV) --extra experiment --extra postgresql --extra dev pyproject.toml -o requirements.lock
	"$(PYTHON)" -c 'import tomllib; e = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; print(*e["slurm"], *e["kubernetes"], sep="\n")' | $(UV) - -c requirements.lock -o requirements-clusters.lock

schema: env
	$(RUN) blast schema > config/schema.json
	$(RUN) blast schema --tables config/README.md

# From the marks of the tests.
faults: env
	$(VENV)/bin/python tests/support/faults.py

ui: env
	$(RUN) blast.experiment.tracking.ui --port $(PORT)

# One page to send to others, and Snakemake's own report of the rules that made it.
report: env
	$(RUN) blast report "$(CONFIG)"
	$(RUN) snakemake all --configfile "$(CONFIG)" --report results/snakemake_report.zip --quiet progress

clean:
	rm -rf .snakemake .pytest_cache .hypothesis .ruff_cache
