PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test soak bench bench-curves lint format

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[faiss,onnx,tensorboard]' $(DEV)
	touch $@

# The development tools of pyproject.toml's group "dev"; their versions are in constraints.txt.
DEV := build hypothesis import-linter mypy packaging pre-commit pytest pytest-xdist ruff types-pyyaml

quickstart: .venv/installed
	$(BIN)/python train.py

# The end of its output lists what was skipped: how many tests, and why.
test: .venv/installed
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 -rs

soak: .venv/installed
	$(BIN)/python -m pytest -m soak --capture=no tests/test_survival.py

# The benchmarks use the shipped documents, unless WIKI names a text with one sentence per line;
# SENTEVAL, a folder in SentEval's layout, adds the sentences of STS.
WIKI ?=
SENTEVAL ?=

bench: .venv/installed
	$(BIN)/python benchmarks/startup.py $(WIKI)
	$(BIN)/python benchmarks/encoding.py $(WIKI) $(if $(SENTEVAL),--senteval $(SENTEVAL))
	$(BIN)/python benchmarks/memory.py --largest 4096 --rounds 1
	$(BIN)/python benchmarks/parts.py $(WIKI)
	$(BIN)/python benchmarks/training.py $(WIKI)

bench-curves: .venv/installed
	$(BIN)/python benchmarks/curves.py $(WIKI)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
