# Every target installs what it needs into .venv first. `make train` and `make test` are all that a newcomer needs.
PYTHON ?= python3
BIN := .venv/bin
DEMO_DATA := data/phantom_cxr
DEMO_RUN := runs/demo
HEAVY := ray or hosts or browser or real_data or heavy
FAST := -n auto --maxprocesses 8 --dist loadfile -m "not slow and not ($(HEAVY))"
# Tests of figures that a CPU computes in its own order, but for those that wait for ranks or draw many images.
NUMERIC := $(patsubst %,tests/test_%.py,augment convolution extractors guards losses models sample step stylegan2)

.PHONY: setup lock audit sbom train test test-heavy test-isa check bench prove shots clean
setup: .venv/installed

.venv/installed: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "medgan needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 setup")'
	@echo "installing into .venv (several minutes, about 6 GB)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock"

lock: ## requirements*.lock from requirements*.txt: every package that comes with them, by hash
	$(LOCK) requirements-dev.txt --output-file requirements-dev.lock
	$(LOCK) requirements.txt --constraint requirements-dev.lock --output-file requirements.lock
	$(LOCK) requirements-audit.txt --output-file requirements-audit.lock

.venv-audit/installed: requirements-audit.lock
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-audit.lock
	@touch $@

audit: .venv-audit/installed ## known weaknesses of what medgan runs on; asks a public database
	.venv-audit/bin/pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock

sbom: .venv-audit/installed ## what medgan runs on, with hashes, as CycloneDX: sbom.json
	.venv-audit/bin/cyclonedx-py requirements requirements.lock --output-reproducible --output-file sbom.json

train: setup ## draw the embedded data set and train a cGAN on this machine's GPUs or CPUs
	@$(BIN)/python jobs/prepare.py --source phantom_cxr --out $(DEMO_DATA) --resolution 32
	@$(BIN)/python jobs/train.py --config jobs/demo.yaml --data $(DEMO_DATA) --out $(DEMO_RUN)

test: setup ## the tests, under 6 minutes on 2 quiet cores
	$(BIN)/python -m pytest $(FAST)

test-heavy: setup ## tests that start Ray, hosts or a browser, or read real images: hosts alone, since they measure time
	$(BIN)/python -m pytest -m "hosts and not slow"
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "($(HEAVY)) and not hosts and not slow"

test-isa: setup ## the numeric tests as CPUs without AVX512, and without AVX, compute them
	ATEN_CPU_CAPABILITY=avx2 DNNL_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest $(FAST) $(NUMERIC)
	ATEN_CPU_CAPABILITY=default DNNL_MAX_CPU_ISA=SSE41 $(BIN)/python -m pytest $(FAST) $(NUMERIC)

check: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup ## speed beside what one would otherwise use, into bench.json: all, or ONLY=loader
	$(BIN)/python -m tests.bench $(if $(ONLY),--only $(ONLY))

PROOFS := learning films ablation search utility privacy soak mutations

prove: setup ## long proofs, into results/: all of them (a day on 2 cores), or ONLY=films and so on, AGAIN=1 what is known, too
	for name in $(or $(ONLY),$(PROOFS)); do $(BIN)/python -m tests.prove.$$name $(if $(AGAIN),--again) || exit 1; done
	$(if $(ONLY),,$(BIN)/python -m pytest -m slow || test $$? -eq 5)  # 5: there is none

shots: setup ## the pictures in docs/, from runs/demo
	$(BIN)/python -m tests.shots

clean: ## what the targets made, the environment included; other data and runs stay
	rm -rf .venv .venv-audit $(DEMO_DATA) $(DEMO_RUN) .pytest_cache .mypy_cache .ruff_cache *.egg-info sbom.json
