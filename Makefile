# make help lists what can be made. Needed: git, make and Python 3.11 or newer; uv is used when present.
PROFILE ?= world
PYTHON ?=
ARGS ?=
FRESH ?=
YES ?=
JOBS ?=
PORT ?= 8000
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.complete
BEGUN := $(VENV)/.unfinished
PEERS := _build/peers
BASE := $(or $(PYTHON),python3)
UV := $(shell command -v uv 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help setup plan book serve test bench campaign mutants faults lint clean FORCE

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1|/' | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'
	@echo "  PROFILE=smoke|world|authors|trial|clip|evening|paper|my.toml   (world)"
	@echo "  ARGS='-p images folder:/my/photos'       parameters of the notebooks"
	@echo "  FRESH=1                                  run every notebook, changed or not"
	@echo "  YES=1                                    fetch what a book needs, also above 100 MB"
	@echo "  JOBS=1                                   notebooks that run side by side (2)"
	@echo "  PYTHON=python3.12                        the interpreter of a new environment"

setup: $(READY) ## the environment in .venv, only

book: $(READY) ## run the notebooks that changed, build _build/html/index.html
	@$(RUN) book/build.py --profile "$(PROFILE)" $(if $(FRESH),--fresh) $(if $(YES),--yes) $(if $(JOBS),--jobs $(JOBS)) $(ARGS)

plan: $(READY) ## what a profile would fetch, keep and compute: PROFILE=clip
	@$(RUN) -m patchsae_lib plan --profile "$(PROFILE)" $(ARGS)

serve: $(READY) ## read the built book at http://localhost:PORT
	@test -f _build/html/index.html || { echo "no book yet: run make book"; exit 1; }
	@$(RUN) -c "import socket; socket.create_server(('127.0.0.1', $(PORT)))" 2>/dev/null || \
		{ echo "port $(PORT) is in use, or none: give another, make serve PORT=8001"; exit 1; }
	@echo "http://localhost:$(PORT)  (ctrl-c ends it)"
	@$(RUN) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html >/dev/null 2>&1

test: $(READY) ## every test, the notebooks and the pages in a browser among them
	@$(RUN) -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

bench: $(READY) $(PEERS)/.complete ## how fast, beside the bound and other libraries: _build/bench.json, a table
	@PATCHSAE_PEERS=$(abspath $(PEERS)/bin/python) $(RUN) -m pytest benchmarks -q -p no:cacheprovider \
		--benchmark-quiet --benchmark-json=_build/bench.json $(ARGS)
	@$(RUN) benchmarks/report.py _build/bench.json $(if $(ARGS),,data/bench.md)

# The libraries that `bench` compares with, in an environment of their own; without a network none.
$(PEERS)/.complete: benchmarks/peers.txt | $(READY)
	@echo "installing what to compare with into $(PEERS)"
ifneq ($(UV),)
	-@uv venv --quiet --clear --python $(RUN) $(PEERS) && \
		uv pip install --quiet --python $(PEERS)/bin/python -r $< && touch $@
else
	-@$(RUN) -m venv --clear $(PEERS) && $(PEERS)/bin/python -m pip install --quiet -r $< && touch $@
endif

campaign: $(READY) ## 200 kills and 500 damaged files, 3 minutes: data/campaign.md
	@TQDM_DISABLE=1 PYTHONPATH=tests $(RUN) tests/campaign.py $(ARGS)

mutants: $(READY) ## changes in the code of measurements that no test notices; ARGS="latents -n 40"
	@$(RUN) tests/mutants.py $(ARGS)

faults: $(READY) ## which faults of users claims, the check and tests notice, two hours: data/faults.md
	@TQDM_DISABLE=1 PYTHONPATH=tests $(RUN) -m recipes.faults $(ARGS)

lint: $(READY) ## ruff (lint and format) and mypy
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

clean: ## remove what was built and measured; .venv stays
	rm -rf _build runs book/notebooks

# An environment whose interpreter has gone is made again, whatever its stamp says.
ifneq ($(shell $(RUN) -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null),True)
$(READY): FORCE
endif

# BEGUN exists while packages are being installed, so that an interrupted installation is started
# over instead of being mistaken for a whole one.
$(READY): requirements.lock pyproject.toml
	@if [ -e $(BEGUN) ]; then echo "$(VENV) was left unfinished: making it again"; rm -rf $(VENV); fi
ifneq ($(UV),)
	@$(RUN) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ rm -rf $(VENV) && uv venv --quiet --python "$(or $(PYTHON),>=3.11)" $(VENV); }
	@$(RUN) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ rm -rf $(VENV); echo "Python 3.11 or newer is needed, $(PYTHON) is older"; exit 1; }
	@touch $(BEGUN)
	@# the build of PyTorch that suits this machine: the CPU's where there is no GPU, a tenth the size;
	@# that index cannot be reached everywhere: then PyPI's
	@backend=$${UV_TORCH_BACKEND:-auto}; \
	install="uv pip install --compile-bytecode --python $(RUN) -r requirements.lock"; \
	echo "UV_TORCH_BACKEND=$$backend $$install"; \
	UV_TORCH_BACKEND=$$backend $$install || { \
		[ -z "$$UV_TORCH_BACKEND" ] || exit 1; \
		echo "trying again with PyPI's build of PyTorch"; env -u UV_TORCH_BACKEND $$install; }
	@uv pip install --quiet --python $(RUN) --no-deps -e .
else
	@$(RUN) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		$(BASE) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
			{ echo "Python 3.11 or newer is needed, $(BASE) is: $$($(BASE) -V 2>&1)." \
			  "Give another with PYTHON=..., or install uv"; exit 1; }; \
		rm -rf $(VENV); $(BASE) -m venv $(VENV) || \
			{ rm -rf $(VENV); echo "$(BASE) -m venv failed: install it (Debian: apt-get install python3-venv), or uv"; exit 1; }; }
	@touch $(BEGUN)
	$(RUN) -m pip install -r requirements.lock
	@$(RUN) -m pip install --quiet --no-deps -e .
endif
	@rm -f $(BEGUN) && touch $@
