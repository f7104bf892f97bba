# The commands a person would want. `make demo` and `make test` work on a fresh clone, as root and as an ordinary user.
CARGO ?= cargo
TARGET_DIR ?= $(or $(CARGO_TARGET_DIR),target)

.PHONY: help demo test soak build deb lint fmt docs setup tools bench bench-smoke

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 13

demo: setup ## Three sites on this machine, in a temporary directory, narrated
	$(CARGO) build --release --quiet
	$(TARGET_DIR)/release/kagami demo

test: setup tools ## Every test, the conformance suites included
	@scripts/run-tests.sh

soak: setup ## The long forms of the random tests: hours; PARTS="crash model" for some
	@scripts/soak.sh $(PARTS)

build: ## The program, optimised
	$(CARGO) build --release

deb: build ## A Debian package, in target/debian
	@scripts/deb.sh $(TARGET_DIR)/release/kagami $(TARGET_DIR)/debian

lint: ## Formatting, clippy, the rules of the docs
	$(CARGO) fmt --check
	$(CARGO) clippy --quiet --all-targets -- -D warnings
	$(CARGO) clippy --quiet --lib --tests --features schedules -- -D warnings
	scripts/check-docs.sh
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --log-level error check; fi

fmt: ## Format the sources
	$(CARGO) fmt

docs: ## The documentation of the code, warnings denied
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --quiet --no-deps

setup: ## Check (as root: install) what building and mounting needs
	@scripts/setup.sh

tools: ## pjdfstest and fsx, into target/tools
	@scripts/conformance-tools.sh

bench-smoke: build ## A few minutes: how fast a mounted volume is beside the filesystem below it
	@scripts/bench.py --rounds 5 $(TARGET_DIR)/release/kagami

bench: build ## The same with more rounds and an async replica; as root on a filesystem of its own
	@scripts/bench.py --rounds 12 --scale 2 --sites 3 $(if $(filter 0,$(shell id -u)),--disk 4096) $(TARGET_DIR)/release/kagami
