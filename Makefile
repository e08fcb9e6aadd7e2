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
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/typing && ln -sfn ../.. $(VENV)/typing/mgvq_export
	MYPYPATH=$(VENV)/typing $(BIN)/mypy --no-namespace-packages -p mgvq_export

# torch first and pinned: unpinned it brings gigabytes of CUDA libraries. polygraphy and the CUDA bindings are for the TensorRT
# code's tests, which need no GPU; TensorRT itself is not installed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[export,report,test]' polygraphy cuda-bindings nvidia-cuda-nvrtc
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info demo-out
