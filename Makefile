# Everything happens in .venv, made from whatever Python 3.10 or later `PYTHON` names.
PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
# Outside the source tree, whose package has no compiled module and would be imported first.
DEMO := $(CURDIR)/build/demo
MODEL := RWKV-4-World-Demo
# Building with more jobs than cores gains nothing and costs memory.
export CMAKE_BUILD_PARALLEL_LEVEL ?= 2

.PHONY: demo quick test docs wheel clean

demo: $(VENV)/installed
	mkdir -p $(DEMO)
	cd $(DEMO) && $(BIN)/python $(CURDIR)/demo/unpack.py dist/models/$(MODEL)
	cd $(DEMO) && $(BIN)/python -m mlc_llm.build --model $(MODEL) --quantization q4f16_1
	cd $(DEMO) && while read -r prompt; do \
	    echo "User: $$prompt"; \
	    $(BIN)/mlc_chat_cli --model $(MODEL)-q4f16_1 --seed 0 --prompt "$$prompt" || exit 1; \
	done < $(CURDIR)/demo/prompts.txt
	cd $(DEMO) && $(BIN)/mlc_chat_cli --model $(MODEL)-q4f16_1 --evaluate

# A file's tests stay together, since they share what its fixtures built; in the order of their names,
# since few tests may take long, and must not be left to the end. A crash ends the run.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# Where it is set, every worker compiles every test anew, which takes a fifth of `make quick`.
quick test: export PYTHONDONTWRITEBYTECODE :=

# What a change is tried on first: tests of a second or so at most, and three libraries in all.
quick: $(VENV)/installed-test
	$(PYTEST) -m "not slow"

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find cpp third_party -name '*.h' -o -name '*.cc')
	cmake -S . -B build/cpp -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	    -DRWKV_WORLD_TESTS=ON -DRWKV_WORLD_SANITIZE=ON
	cmake --build build/cpp
	ctest --test-dir build/cpp --output-on-failure
	$(PYTEST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/installed: pyproject.toml CMakeLists.txt $(shell find cpp mlc_rwkv_world mlc_llm -type f -not -path '*/__pycache__/*') | $(BIN)/python
	$(BIN)/python -m pip install --quiet .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet '.[test,lint]'
	touch $@

# Every link inside these files leads somewhere, or this fails.
docs: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --group docs
	$(BIN)/python docs/site.py build/site

wheel: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --group wheel
	$(BIN)/python -m build --outdir build/wheels .

clean:
	rm -rf $(VENV) build dist
