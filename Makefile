# usernet: build, test, install. `make` alone prints the targets.
#
# Everything here is also plain Go: `go test ./...` needs no make. What make
# adds is the split into rings, the tools and the report.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

GO ?= go
# Where `make install` puts the binaries: $(DESTDIR)$(PREFIX)/bin.
PREFIX ?= /usr/local
DESTDIR ?=
# Packages that are built and tested at once.
JOBS ?= 2
# How long `make fuzz-smoke` runs each fuzz target.
FUZZTIME ?= 5s
# Narrow a ring to some packages or tests: make unit PKGS=./ipam/ RUN=Quarantine
PKGS ?= ./...
RUN ?=

GOLANGCI_VERSION := v2.15.0
CNITOOL_VERSION := v1.3.1

TOOLS := $(CURDIR)/.tools
GOLANGCI := $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION)
CNITOOL := $(TOOLS)/cnitool-$(CNITOOL_VERSION)/cnitool
# Clients of ring 3 whose libraries are no requirement of this module.
CLIENTS := $(TOOLS)/clients/cri
# Podman's tests of its own CNI code. Ring 3 builds them again where there is no way to
# the modules that they need.
LIBNETWORK := $(TOOLS)/libnetwork.test
# Modules of their own, so that this one does not require what they do.
MODULES := bench test/clients test/libnetwork
# The benchmark and the peers that are built from source.
BENCH := $(TOOLS)/bench/bench
# Tests find the Go tools of this tree before those of the machine.
export PATH := $(dir $(CNITOOL)):$(dir $(CLIENTS)):$(PATH)

# In CI a skipped test is a failed one.
REPORT = $(GO) run ./internal/testreport $(if $(filter true 1,$(CI)),-no-skips)

# Benchmarks are run once, beside the tests: one that nobody runs ends up broken.
BENCHMARKS := -benchtime 1x -bench

.PHONY: help
help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: test
test: ## Lint and all three rings, after installing what they need
	@.ci/stages tools lint unit netns runtimes

.PHONY: unit
unit: ## Ring 1: no root needed, with the race detector
	@$(GO) test -json -race -p $(JOBS) -timeout 10m -skip '^(Test|Benchmark)Netns' -run '$(RUN)' $(BENCHMARKS) '$(or $(RUN),.)' $(PKGS) | $(REPORT)
	@$(GO) -C bench test -skip '^TestNetns' -run '$(RUN)' ./...

.PHONY: netns
netns: ## Ring 2: real TUNs in namespaces that the tests make; speed counts, so no race detector
	@$(GO) test -json -p $(JOBS) -timeout 10m -count=1 -run '^TestNetns.*$(RUN)' $(BENCHMARKS) '^BenchmarkNetns.*$(RUN)' $(PKGS) | $(REPORT)
	@$(GO) -C bench test -json -count=1 -run '^TestNetns.*$(RUN)' ./... | $(REPORT)

.PHONY: runtimes
runtimes: $(CNITOOL) $(CLIENTS) $(LIBNETWORK) ## Ring 3: built binaries with real runtimes and clients; needs root
	@$(GO) test -json -p 1 -timeout 15m -count=1 -tags runtimes -run '$(RUN)' ./test/... | $(REPORT)

# How many processes `make chaos` kills.
KILLS ?= 1000

.PHONY: chaos
chaos: ## Kill daemon and plugins KILLS times (1000), and count what leaks
	@USERNET_CHAOS_KILLS='$(KILLS)' $(GO) test -v -timeout 60m -count=1 -tags runtimes -run '^TestCNIChaos$$' ./test/

.PHONY: lint
lint: $(GOLANGCI) ## Format, vet, static checks
	@for f in .ci/*; do bash -n "$$f"; done
	@$(GOLANGCI) run --allow-parallel-runners --timeout 10m $(PKGS)
	@test -z "$$(gofmt -l $(MODULES))" || { echo 'run gofmt on $(MODULES)'; exit 1; }
	@for d in $(MODULES); do $(GO) -C "$$d" vet ./... || exit 1; done

.PHONY: bench
bench: build $(BENCH) ## usernet beside its peers; needs root; BENCHFLAGS="--rounds 1 --scenario rr"
	@$(BENCH) run --bin bin --tools '$(dir $(BENCH))' $(BENCHFLAGS)

.PHONY: fuzz-smoke
fuzz-smoke: ## Each fuzz target for FUZZTIME (5s)
	@.ci/fuzz $(FUZZTIME) $(PKGS)

.PHONY: build
build: ## Static binaries into bin/
	@rm -rf bin
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/ ./cmd/...

.PHONY: install
install: build ## The binaries into PREFIX/bin (/usr/local/bin)
	@install -d '$(DESTDIR)$(PREFIX)/bin'
	@install -m 0755 bin/* '$(DESTDIR)$(PREFIX)/bin/'

.PHONY: tools
tools: $(GOLANGCI) $(CNITOOL) $(CLIENTS) $(LIBNETWORK) ## Install what the tests need: Debian packages (as root) and Go tools
	@.ci/packages

$(GOLANGCI):
	@.ci/gotool '$@' github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

$(CNITOOL):
	@.ci/gotool '$@' github.com/containernetworking/cni/cnitool@$(CNITOOL_VERSION)

$(CLIENTS): test/clients/go.mod test/clients/go.sum $(wildcard test/clients/*/*.go)
	@echo 'building test/clients'
	@$(GO) -C test/clients build -trimpath -o '$(dir $(CLIENTS))' ./... github.com/cri-o/ocicni/tools/ocicnitool

$(LIBNETWORK): test/libnetwork/go.mod test/libnetwork/go.sum
	@echo 'building test/libnetwork'
	@CGO_ENABLED=0 $(GO) -C test/libnetwork test -c -o '$@' github.com/containers/common/libnetwork/cni

$(BENCH): bench/go.mod bench/go.sum $(wildcard bench/*.go)
	@echo 'building bench'
	@$(GO) -C bench build -trimpath -o '$(dir $(BENCH))' . github.com/containers/gvisor-tap-vsock/cmd/gvproxy
	@$(GO) -C bench build -trimpath -o '$(dir $(BENCH))gvforwarder' github.com/containers/gvisor-tap-vsock/cmd/vm

.PHONY: clean
clean: ## Remove bin/ and the Go tools
	@rm -rf bin .tools
