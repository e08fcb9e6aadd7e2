# make demo   set everything up and run the main job on the packaged model
# make test   set everything up and run the tests
# make lint   formatting, lint rules, types

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow lint clean

demo: $(STAMP)
	$(BIN)/mgvq-export demo -o demo-out

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not long"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/typing && ln -sfn ../.. $(VENV)/typing/mgvq_export
	MYPYPATH=$(VENV)/typing $(BIN)/mypy --no-namespace-packages -p mgvq_export

# torch first and pinned: unpinned it brings gigabytes of CUDA libraries. polygraphy and the CUDA packages are for the TensorRT
# code's tests, which need no GPU; TensorRT itself is not installed. Without their dependencies: lpips and clean-fid, whose torchvision is
# a CUDA build that does not load beside this torch, and ptxas, whose compiler library is large and not needed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[export,report,test]' polygraphy cuda-bindings nvidia-cuda-nvrtc requests tqdm faiss-cpu
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt lpips clean-fid nvidia-cuda-nvcc nvidia-cuda-crt nvidia-cuda-runtime
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info demo-out
