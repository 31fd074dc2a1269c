# make demo   trains, distils, exports, compiles, generates: the whole product on real data (minutes)
# make test   the whole test suite            make check   lint, types, tests
# make gpu-acceptance   everything that only a GPU can confirm (8 minutes)
# make bench  the benchmarks                  make quality every method against its teacher (four hours on two cores)
# make pareto smaller students, quality against latency (an hour)
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# The checkout must never shadow the installed package (and its kernels/ folder is also the name of a package of others).
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SOURCES := $(shell find distill_rt kernels training -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.pyi') CMakeLists.txt pyproject.toml

.PHONY: setup demo test check lint typed format bench gpu-acceptance quality pareto wheel develop constraints clean

setup: $(VENV)/.installed

$(VENV)/.dependencies: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/requirements.py dev > $(VENV)/requirements.txt
	$(BIN)/pip install -q -c constraints.txt "scikit-build-core>=1.0" "pybind11>=2.13" ninja -r $(VENV)/requirements.txt
	touch $@

# Not editable: an editable install puts the checkout on sys.path, where transformers takes our kernels/ folder for
# the package of that name. A changed source file is installed again (seconds) before the next target runs.
$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	$(BIN)/pip install -q --no-build-isolation --no-deps --force-reinstall .
	touch $@

demo: setup
	$(BIN)/distill-rt demo --out demo --force

test: setup
	$(BIN)/pytest -n 2

check: lint typed test

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy reads the installed package, because training/ and kernels/ are inside of distill_rt only there.
typed: setup
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml -p distill_rt

bench: setup
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-disable-gc --benchmark-json=benchmarks/results/benchmarks.json
	$(BIN)/python benchmarks/summarise.py benchmarks/results/benchmarks.json

# With the Python that has torch for this GPU (make gpu-acceptance PYTHON=...); nothing is installed.
gpu-acceptance:
	$(PYTHON) benchmarks/gpu_acceptance.py $(ARGS)

quality: setup
	$(BIN)/python benchmarks/quality.py --out benchmarks/results/quality.json --table docs/methods.md --plot docs/quality.svg

pareto: setup
	$(BIN)/python benchmarks/pareto.py --out benchmarks/results/pareto.json
	$(BIN)/python benchmarks/pareto_report.py benchmarks/results/pareto.json --plot docs/pareto.svg --table docs/methods.md

wheel: setup
	$(BIN)/pip wheel -q --no-build-isolation --no-deps -w dist .

# For editing: sources are live. The second line takes the checkout off sys.path again (see above).
develop: $(VENV)/.dependencies
	$(BIN)/pip install -q --no-build-isolation --no-deps -e .
	sed -i '\#^$(CURDIR)$$#d' $(VENV)/lib/python3.*/site-packages/_editable_skbc_distill_rt.pth
	touch $(VENV)/.installed

clean:
	rm -rf build dist $(VENV)
