PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test test-slow soak bench bench-gpu lint format

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[faiss,lora,onnx,tensorboard]' $(DEV)
	touch $@

# The development tools of pyproject.toml's group "dev"; their versions are in constraints.txt.
DEV := build hypothesis import-linter mypy packaging pre-commit pytest pytest-xdist ruff types-pyyaml

quickstart: .venv/installed
	$(BIN)/python train.py

# The end of the output lists what was skipped: how many tests, and why. Tests start many processes,
# which need not compile anew what the first has compiled, wherever the environment would have it so.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
PYTEST += --numprocesses auto --maxprocesses 4 --dist worksteal -rs

test: .venv/installed
	$(PYTEST)

# The tests that `make test` leaves out: more cases of the same, and checks that take long.
test-slow: .venv/installed
	$(PYTEST) -m slow

soak: .venv/installed
	$(BIN)/python -m pytest -m soak --capture=no tests/test_survival.py

# The benchmarks use the shipped documents, unless WIKI names a text with one sentence per line;
# SENTEVAL, a folder in SentEval's layout, adds the sentences of STS.
WIKI ?=
SENTEVAL ?=

# Prints one table; what it rests on is in benchmarks/results.
bench: .venv/installed
	$(BIN)/python benchmarks/startup.py $(WIKI) > /dev/null
	$(BIN)/python benchmarks/encoding.py $(WIKI) $(if $(SENTEVAL),--senteval $(SENTEVAL)) > /dev/null
	$(BIN)/python benchmarks/training.py $(WIKI) > /dev/null
	$(BIN)/python benchmarks/summary.py

# The same on a GPU, in less than ten minutes, and whether training there is right at all.
bench-gpu: .venv/installed
	scripts/gpu_smoke.sh
	$(BIN)/python benchmarks/encoding.py $(WIKI) --no-onnx > /dev/null
	$(BIN)/python benchmarks/training.py $(WIKI) --small --steps 200 > /dev/null
	$(BIN)/python benchmarks/summary.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
