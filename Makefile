# `make demo`, `make test`, `make docs`, `make benchmarks`. Each makes the virtual environment first, if it is not there.
#
#   make demo                   the main job on generated videos, about ten minutes on two CPU cores
#   make demo VIDEOS=folder     the same on your own videos, in class folders
#   make test                   lint, types, tests in two processes (JOBS=4: in four)
#   make docs                   the documentation as a site, in site/
#   make benchmarks VIDEOS=folder [RESULTS=folder]   benchmarks that need neither a GPU nor hours
#   DALI=cu12 make demo         for a torch built for CUDA 12 (the default is cu13; both run without a GPU)

PYTHON ?= python3
DALI ?= cu13
VENV ?= .venv
VIDEOS ?=
JOBS ?= 2
OUT ?= runs/demo$(if $(VIDEOS),-$(shell basename '$(VIDEOS)'))

STAMP := $(VENV)/.installed
BIN := $(VENV)/bin

RESULTS ?= benchmarks/results/$(shell date +%Y%m%d)
BENCHMARK := OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks

.PHONY: demo test lint docs benchmarks clean

demo: $(STAMP)
	$(BIN)/rhofast demo --out '$(OUT)' $(if $(VIDEOS),--videos '$(VIDEOS)')

test: $(STAMP) lint
	$(BIN)/pytest -n $(JOBS) --dist loadfile --max-worker-restart 0

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/pip install --quiet --editable '.[$(DALI),docs]'
	$(BIN)/mkdocs build --strict

# One that fails does not keep the others from running; the exit code tells.
benchmarks: $(STAMP)
	@test -n '$(VIDEOS)' || { echo "make benchmarks VIDEOS=folder"; exit 2; }
	$(BIN)/pip install --quiet --editable '.[$(DALI),bench]'
	mkdir -p '$(RESULTS)'
	failed=0; \
	$(BENCHMARK).data_loading.loader_vs_peers '$(VIDEOS)' --out '$(RESULTS)' || failed=1; \
	$(BENCHMARK).data_loading.soak --out '$(RESULTS)/soak_jpeg' || failed=1; \
	$(BENCHMARK).data_loading.soak --codec h264 --out '$(RESULTS)/soak_h264' || failed=1; \
	$(BENCHMARK).data_loading.million_samples --out '$(RESULTS)/million_samples' || failed=1; \
	$(BENCHMARK).data_loading.host_cost '$(VIDEOS)' --out '$(RESULTS)' || failed=1; \
	$(BENCHMARK).data_loading.segments --out '$(RESULTS)' || failed=1; \
	$(BENCHMARK).data_loading.remote '$(VIDEOS)' --out '$(RESULTS)/remote' || failed=1; \
	$(BENCHMARK).data_loading.faces '$(VIDEOS)' --out '$(RESULTS)' || failed=1; \
	$(BENCHMARK).data_loading.hue '$(VIDEOS)' --out '$(RESULTS)' || failed=1; \
	$(BENCHMARK).data_loading.blur --out '$(RESULTS)' || failed=1; \
	$(BENCHMARK).data_loading.strong_augment '$(VIDEOS)' --out '$(RESULTS)' || failed=1; \
	$(BIN)/python -m benchmarks.training.step_vs_plain --out '$(RESULTS)/step_vs_plain' || failed=1; \
	$(BENCHMARK).training.step_vs_peers --out '$(RESULTS)/step_vs_peers' || failed=1; \
	$(BENCHMARK).training.vit_step --out '$(RESULTS)/vit_step' || failed=1; \
	$(BENCHMARK).training.weak_scaling --out '$(RESULTS)/weak_scaling' || failed=1; \
	$(BENCHMARK).training.kill_and_resume --out '$(RESULTS)/kill_and_resume' || failed=1; \
	$(BENCHMARK).evaluation.knn --large --out '$(RESULTS)' || failed=1; \
	$(BENCHMARK).evaluation.replicas --out '$(RESULTS)' || failed=1; \
	$(BENCHMARK).study.keep_cost --out '$(RESULTS)/keep_cost' || failed=1; \
	$(BENCHMARK).data_loading.ingest_vs_ffmpeg '$(VIDEOS)' --out '$(RESULTS)' || failed=1; \
	$(BENCHMARK).data_loading.remux '$(VIDEOS)' --out '$(RESULTS)' || failed=1; \
	exit $$failed

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rhofast needs Python 3.11 or newer; say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --editable '.[$(DALI),dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs site
