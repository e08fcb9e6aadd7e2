# The targets set up what they need in .venv on first use. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow fuzz coverage lint format docs wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*##' '{ printf "make %-10s %s\n", $$1, $$2 }'

demo: $(STAMP)  ## export the packaged model, encode and decode photos, compare with PyTorch
	$(BIN)/mgvq-export demo -o demo-out

test: $(STAMP)  ## the tests but the slow ones, with the coverage floor of pyproject.toml
	$(PYTEST) -m "not slow" --cov --cov-report=

test-slow: $(STAMP)  ## full-size networks, fresh installations, all replayed life cycles
	$(PYTEST) -m "slow and not long"

fuzz: $(STAMP)  ## 50,000 damaged files of every kind, other ones than in make test
	MGVQ_FUZZ=50000 $(PYTEST) -x tests/test_fuzz.py

coverage: $(STAMP)  ## after make test: which lines no test ran
	$(BIN)/coverage report --show-missing --fail-under=0

# mypy finds the package by a link: the repository root is the package, whatever the clone's folder is called.
lint: $(STAMP)  ## formatting, lint rules, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/typing && ln -sfn ../.. $(VENV)/typing/mgvq_export
	MYPYPATH=$(VENV)/typing $(BIN)/mypy --no-namespace-packages -p mgvq_export

format: $(STAMP)  ## write the formatting and the fixes that ruff knows
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## write the generated pages anew: docs/api.md, docs/cli.md, the pictures of docs/architecture.md
	$(BIN)/python -m mgvq_export.tools.write_api_docs
	$(BIN)/python -m mgvq_export.tools.write_cli_docs
	$(BIN)/python -m mgvq_export.tools.draw_architecture

wheel: $(STAMP)  ## dist/*.whl
	rm -rf build
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist .
	rm -rf build

# torch first and pinned: unpinned it brings gigabytes of CUDA libraries. polygraphy and the CUDA packages are for the TensorRT
# code's tests, which need no GPU; TensorRT itself is not installed, TensorRT for RTX is. Without their dependencies: lpips and clean-fid, whose torchvision is
# a CUDA build that does not load beside this torch, and ptxas, whose compiler library is large and not needed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[export,openvino,rtx,report,dataset,test]' polygraphy cuda-bindings nvidia-cuda-nvrtc requests tqdm faiss-cpu
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt lpips clean-fid nvidia-cuda-nvcc nvidia-cuda-crt nvidia-cuda-runtime
	touch $@

clean:  ## remove .venv and everything that was built
	rm -rf $(VENV) build dist *.egg-info demo-out .coverage .coverage.* .pytest_cache .ruff_cache .mypy_cache .hypothesis
