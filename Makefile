# `make demo` and `make test` each do all the set-up on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: venv demo check types test test-all docs clean

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev,docs]"
	touch $@

# The whole road on synthetic scans, on the CPU. Every line that is printed can be typed as it stands. AdamW learns in so few
# iterations; nnU-Net's optimiser would need more. Both trainers get it.
DEMO_ITERATIONS ?= 1000
DEMO_SEED ?= 0
DEMO_RAW = demo/nnUNet_raw/Dataset901_Phantom
DEMO_RUN = -num_iterations $(DEMO_ITERATIONS) -seed $(DEMO_SEED) -tag demo --set optimizer=adamw learning_rate=0.001

demo: export nnUNet_raw := demo/nnUNet_raw
demo: export nnUNet_preprocessed := demo/nnUNet_preprocessed
demo: export nnUNet_results := demo/nnUNet_results
demo: export nnUNet_compile := f
demo: export nnUNet_n_proc_DA := 1
demo: venv
	rm -rf demo
	@echo "export nnUNet_raw=$(nnUNet_raw) nnUNet_preprocessed=$(nnUNet_preprocessed) nnUNet_results=$(nnUNet_results)"
	@echo "export nnUNet_compile=$(nnUNet_compile) nnUNet_n_proc_DA=$(nnUNet_n_proc_DA)"
	nnssl_phantom -d 901 -labelled 2 -unlabelled 40 -test 20 -shape 16 40 40 -seed $(DEMO_SEED)
	nnssl_plan_and_preprocess -d 901 -c 2d -hardware cpu
	nnssl_train 901 2d 0 -tr SupervisedTrainer -device cpu $(DEMO_RUN)
	nnssl_train 901 2d 0 -tr FixMatchTrainer -device cpu $(DEMO_RUN)
	nnssl_runs -d 901
	nnssl_predict -i $(DEMO_RAW)/imagesTs -o demo/predictions/SupervisedTrainer -tr SupervisedTrainer -device cpu
	nnssl_predict -i $(DEMO_RAW)/imagesTs -o demo/predictions/FixMatchTrainer -tr FixMatchTrainer -device cpu
	nnssl_evaluate $(DEMO_RAW)/labelsTs demo/predictions/SupervisedTrainer
	nnssl_evaluate $(DEMO_RAW)/labelsTs demo/predictions/FixMatchTrainer
	nnssl_compare demo/predictions/SupervisedTrainer demo/predictions/FixMatchTrainer
	nnssl_report demo/predictions/SupervisedTrainer demo/predictions/FixMatchTrainer -o demo/report

# dataset_conversion is installed inside nnssl. Tools that read files see the installed packages in this folder of links.
LAYOUT := .venv/layout

types: venv
	rm -rf $(LAYOUT)/nnssl && mkdir -p $(LAYOUT)/nnssl
	ln -s $(CURDIR)/nnssl/* $(CURDIR)/dataset_conversion $(LAYOUT)/nnssl
	ln -sfn $(CURDIR)/nnssl_trainers $(CURDIR)/nnssl_commands.py $(CURDIR)/pyproject.toml $(LAYOUT)
	cd $(LAYOUT) && mypy

check: venv types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(LAYOUT) && lint-imports --no-logo
	cd $(LAYOUT) && pylint nnssl nnssl_trainers nnssl_commands.py
	$(BIN)/codespell

# One process a core with one thread each, at most four: every process holds torch.
TESTS = OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

test: check docs
	$(TESTS) -m "not nightly"

test-all: check docs
	$(TESTS) --cov --cov-report=term

docs: venv
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build

clean:
	rm -rf .venv demo docs/_build docs/generated .coverage .mypy_cache .ruff_cache .pytest_cache
