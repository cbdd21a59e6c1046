# Three doors: `make demo`, `make test` and, on a machine with a GPU, `make gpu-check`.
# All create .venv when it is missing or out of date.
# Options: PYTHON=python3.12, and PIP_ARGS for pip, such as another index with torch's CPU build;
# GPU_CHECK_ARGS, such as --minutes 4 or --device cpu --tiny.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_ARGS ?=
GPU_CHECK_ARGS ?=
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

.PHONY: demo test gpu-check

demo: .venv/installed
	$(BIN)/retailtag demo --out demo/catalogue --n-images 4000 --seed 0
	$(BIN)/retailtag bakeoff demo/catalogue/catalogue.csv --out demo/run --features demo/features \
	  --backbones demo:cnn,demo:dino,demo:clip --strategies probe,finetune --epochs 4 --seed 0

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

gpu-check: .venv/installed
	$(BIN)/python benchmarks/gpu_check.py $(GPU_CHECK_ARGS)

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) --editable '.[dev]'
	touch $@
