# The front door: every target installs what it needs, builds, and runs. The
# build itself is CMake's, see CMakePresets.json.
#
#   make test JOBS=4        number of parallel compilations and tests; default: cores
#   make install PREFIX=/usr DESTDIR=/tmp/root
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

JOBS ?= $(shell nproc)
PREFIX ?= /usr/local
BUILD := build/release
FUZZ_SECONDS ?= 60
SOAK_SECONDS ?= 600

# $(call build,preset,targets): configure a preset and build its targets, or all.
define build
	cmake --preset $(1)
	cmake --build build/$(1) --parallel $(JOBS) $(if $(2),--target $(2))
endef
define ctest
	ctest --test-dir build/$(1) --output-on-failure --no-tests=error --parallel $(JOBS)
endef

# Where there is a GPU, what needs one is also tested on it, one test at a time.
define gpu_ctest
	if nvidia-smi -L >/dev/null 2>&1; then \
	  TRIMS_TEST_REAL_GPU=1 ctest --test-dir build/$(1) --output-on-failure --label-regex '^gpu$$'; fi
endef

.PHONY: help
help:  ## This list
	@echo "TrIMS: one copy of the weights, many isolated processes"
	@echo
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

.PHONY: setup
setup:  ## Install the Debian packages that are missing (others do this by themselves)
	@tools/setup

.PHONY: build
build: setup  ## Build everything into build/release
	$(call build,release)

.PHONY: demo
demo: setup  ## A daemon, digits classified by several processes, sharing measured on and off
	$(call build,release,trimsd trims_cli weights_client make-model)
	tools/demo "$(BUILD)"

.PHONY: test
test: build  ## Build with warnings as errors and run every test, also on the GPU where there is one
	$(call gpu_ctest,release)
	$(call ctest,release)

.PHONY: bench
bench: build  ## Run every benchmark
	tools/bench "$(BUILD)"

.PHONY: soak
soak: build  ## The stress tests for SOAK_SECONDS (default 600)
	tools/soak "$(BUILD)" "$(SOAK_SECONDS)"

.PHONY: asan
asan: setup  ## Every test under AddressSanitizer and UndefinedBehaviorSanitizer
	$(call build,asan)
	$(call ctest,asan)

.PHONY: tsan
tsan: setup  ## Every test under ThreadSanitizer
	$(call build,tsan)
	$(call ctest,tsan)

.PHONY: fuzz
fuzz:  ## Every fuzzer for FUZZ_SECONDS (default 60)
	@tools/setup fuzz
	$(call build,fuzz)
	tools/fuzz build/fuzz "$(FUZZ_SECONDS)"

.PHONY: format
format:  ## Format every C and C++ file
	@tools/setup format
	git ls-files -z '*.h' '*.hpp' '*.cc' '*.c' | xargs -0 clang-format -i

.PHONY: install
install: build  ## Install into PREFIX (default /usr/local); DESTDIR works as usual
	cmake --install "$(BUILD)" --prefix "$(PREFIX)"

.PHONY: clean
clean:  ## Remove everything that was built
	rm -rf build
