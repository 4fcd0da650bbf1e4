# `make train` and `make test` set up everything they need on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: train eval test numeric numeric-default numeric-avx2 test-slow openvino check bench docs clean

# Installed editable. Packages are compiled on all cores: pip compiles them on one, half a minute.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile
COMPILE = $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

$(VENV)/.pip:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	touch $@

$(VENV)/.core: pyproject.toml | $(VENV)/.pip  ## the core
	$(INSTALL) -e '.[eval]'
	$(COMPILE)
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.pip  ## the core and what its tests need
	$(INSTALL) -e '.[dev]'
	$(COMPILE)
	touch $(VENV)/.core $@

train: $(VENV)/.core  ## train the default experiment (ARGS="key=value ...")
	$(BIN)/python train_sb3.py $(ARGS)

eval: $(VENV)/.core  ## evaluate a run (ARGS="policy=runs/emoji ...")
	$(BIN)/python eval_sb3.py $(ARGS)

test: $(VENV)/.dev  ## the test suite, under ten minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)
	$(if $(ARGS),,$(MAKE) numeric)

# AVX2 is an older instruction set only on machines with AVX-512; on others the whole suite already runs under it.
numeric: $(VENV)/.dev  ## the numerical tests under older instruction sets, in parallel
	$(MAKE) -j 2 numeric-default $(if $(shell grep -m 1 -o avx512f /proc/cpuinfo 2>/dev/null),numeric-avx2)

# torch's and oneDNN's names of each set; where it does not exist (ARM), torch uses the machine's own.
numeric-default: ISA = ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41
numeric-avx2: ISA = ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
numeric-default numeric-avx2:
	$(ISA) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'numeric and not slow' $(shell grep -rl --include='test_*.py' 'mark\.numeric' tests)

test-slow: $(VENV)/.dev  ## the tests that take minutes
	$(BIN)/python -m pip install --quiet -e '.[clients,lora,slurm]'
	$(BIN)/python -m pytest -q -m slow $(ARGS)

openvino: $(VENV)/.dev  ## the tests of the extra openvino, which is not installed otherwise
	$(BIN)/python -m pip install --quiet -e '.[openvino]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/backbones/test_openvino.py $(ARGS)

check: $(VENV)/.dev  ## style, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test

bench: $(VENV)/.core  ## speed compared with the bare denoiser loop
	$(BIN)/python -m addiffusion_env bench $(ARGS)

docs: $(VENV)/.dev  ## the documentation site, warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info
