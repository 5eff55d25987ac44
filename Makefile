# `make demo` and `make test` do all of their own set-up.
PYTHON ?= python3
VENV ?= .venv
# That of `make demo-hf`, which has transformers and no mmcv.
VENV_HF ?= .venv-hf
# That of `make app`: gradio wants an older Pillow than the others have.
VENV_APP ?= .venv-app
# What the page of `make app` offers; docs/app.md has what else.
NETWORKS ?= work_dirs/demo_hf
# The token mixer of the demo: mamba, vit or retnet.
FAMILY ?= mamba
# Of `make study`: full (meant for an hour on 2 cores) or quick (10 minutes).
STUDY ?= full

.PHONY: demo demo-seg demo-d2 demo-hf app study study-transfer test test-order test-alone test-matrix test-detectron2 mutants setup lint docs clean-demo

setup:
	@$(PYTHON) tools/setup_env.py $(VENV)

demo: setup
	@$(VENV)/bin/python tools/demo.py --family $(FAMILY)

demo-seg: setup
	@$(VENV)/bin/python tools/demo_seg.py

# Needs Detectron2, which is built from its source: the program says how.
demo-d2: setup
	@$(VENV)/bin/python tools/demo_detectron2.py

# With transformers' Trainer: pip alone, and nothing to compile but our kernels.
demo-hf:
	@$(PYTHON) tools/setup_env.py --transformers $(VENV_HF)
	@$(VENV_HF)/bin/python tools/demo_transformers.py

# A page in the browser: what a trained network finds in an image, and where it looks.
app:
	@$(PYTHON) tools/setup_env.py --app $(VENV_APP)
	@$(VENV_APP)/bin/python tools/app.py $(NETWORKS)

# The paper's argument in miniature; docs/study.md has what came out.
study: setup
	@$(VENV)/bin/python -m studies --scale $(STUDY)

# The study's classifier as the pre-trained backbone of the demo's detector.
study-transfer: setup
	@$(VENV)/bin/python -m studies.transfer

# A worker a core and one more, of the order of the files, so that those that share something made once mostly share a worker.
test: setup
	@$(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal

# The same in an order that is drawn: of files, and of the tests in each. It says how the same order is had again.
test-order: SEED := $(or $(SEED),$(shell date +%s))
test-order: setup
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check "pytest-randomly>=4"
	@echo "make test-order SEED=$(SEED)"
	@$(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal -p randomly --randomly-dont-reset-seed \
		--randomly-seed=$(SEED)

# Each file of tests in a process of its own.
test-alone: setup
	@VENV=$(VENV) .ci/test_alone

# The oldest and newest versions that are promised: an environment each, of 3 to 6 GB, kept in work_dirs/matrix.
# `make test-matrix ONLY="oldest newest"` tests some of them.
test-matrix: setup
	@$(VENV)/bin/python tools/test_matrix.py $(ONLY)

# In an environment that has both: make test-detectron2 VENV=… DETECTRON2_ROOT=… DETREX_ROOT=…
test-detectron2:
	@$(VENV)/bin/python -m tests.run_detectron2

# Breaks the code, one change at a time; the tests must notice. Takes an hour, for once a week.
mutants: setup
	@$(VENV)/bin/python -m tests.mutants.run

# The documents as a site, in site/, every link and anchor checked.
docs:
	@test -x .venv-docs/bin/mkdocs || $(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

lint: setup
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

clean-demo:
	rm -rf work_dirs/demo work_dirs/demo_seg work_dirs/demo_d2 work_dirs/demo_hf work_dirs/shapes
