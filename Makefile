# The commands a person would want. `make demo` and `make test` work on a fresh clone, as root and as an ordinary user.
CARGO ?= cargo
TARGET_DIR ?= $(or $(CARGO_TARGET_DIR),target)

.PHONY: help demo test build lint fmt docs setup tools

help: ## This list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: setup ## Three sites on this machine, in a temporary directory, narrated
	$(CARGO) build --release --quiet
	$(TARGET_DIR)/release/kagami demo

test: setup tools ## Every test, the conformance suites included
	@scripts/run-tests.sh

build: ## The program, optimised
	$(CARGO) build --release

lint: ## Formatting, clippy, the rules of the docs
	$(CARGO) fmt --check
	$(CARGO) clippy --quiet --all-targets -- -D warnings
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
