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

# The whole road on synthetic scans, on the CPU. Every line that is printed can be typed as it stands.
DEMO_ITERATIONS ?= 250
DEMO_RAW = demo/nnUNet_raw/Dataset901_Phantom
DEMO_RESULTS = demo/nnUNet_results/Dataset901_Phantom

demo: export nnUNet_raw := demo/nnUNet_raw
demo: export nnUNet_preprocessed := demo/nnUNet_preprocessed
demo: export nnUNet_results := demo/nnUNet_results
demo: export nnUNet_compile := f
demo: export nnUNet_n_proc_DA := 1
demo: venv
	rm -rf demo
	@echo "export nnUNet_raw=$(nnUNet_raw) nnUNet_preprocessed=$(nnUNet_preprocessed) nnUNet_results=$(nnUNet_results)"
	@echo "export nnUNet_compile=$(nnUNet_compile) nnUNet_n_proc_DA=$(nnUNet_n_proc_DA)"
	nnssl_phantom -d 901
	nnssl_plan_and_preprocess -d 901 -c 3d_fullres -hardware cpu
	nnssl_train 901 3d_fullres 0 -tr SupervisedTrainer -num_iterations $(DEMO_ITERATIONS) -device cpu -tag demo
	nnssl_train 901 3d_fullres 0 -tr MeanTeacherTrainer -num_iterations $(DEMO_ITERATIONS) -device cpu -tag demo
	nnssl_runs -d 901
	nnssl_predict -i $(DEMO_RAW)/imagesTs -o demo/predictions/SupervisedTrainer -tr SupervisedTrainer -device cpu
	nnssl_predict -i $(DEMO_RAW)/imagesTs -o demo/predictions/MeanTeacherTrainer -tr MeanTeacherTrainer -device cpu
	nnssl_evaluate $(DEMO_RAW)/labelsTs demo/predictions/SupervisedTrainer
	nnssl_evaluate $(DEMO_RAW)/labelsTs demo/predictions/MeanTeacherTrainer
	nnssl_compare demo/predictions/SupervisedTrainer demo/predictions/MeanTeacherTrainer

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

test: check docs
	$(BIN)/pytest -m "not nightly" --cov --cov-report=term

test-all: check docs
	$(BIN)/pytest --cov --cov-report=term

docs: venv
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build

clean:
	rm -rf .venv demo docs/_build docs/generated .coverage .mypy_cache .ruff_cache .pytest_cache
