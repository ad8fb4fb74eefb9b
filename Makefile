# Millrace: `make help` lists what there is.
export CGO_ENABLED ?= 0
export GOAMD64 ?= v3
GO ?= go
BIN := bin/millrace
FUZZTIME ?= 20s

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/millrace
	$(GO) build -o $(BIN) ./cmd/millrace

build-dpdk: ## build bin/millrace-dpdk, whose `bench fib` has DPDK's tables as peers; needs gcc, pkg-config, libdpdk-dev
	CGO_ENABLED=1 $(GO) build -tags dpdk -o $(BIN)-dpdk ./cmd/millrace

test-dpdk: ## the tests of that build
	CGO_ENABLED=1 $(GO) vet -tags dpdk ./bench/...
	CGO_ENABLED=1 $(GO) test -tags dpdk ./bench/dpdkfib/

demo: setup build ## route real packets of real programs: a lab of namespaces as root, in memory otherwise
	@./$(BIN) demo

test: setup build ## everything CI runs: vet, unit tests, end to end, the race detector
	$(GO) vet ./...
	$(GO) test ./...
	CGO_ENABLED=1 $(GO) test -race -short ./...
	$(GO) test -tags invariants -short ./packet/... ./ip/... ./pipeline/... ./pmd/mem/... ./fib/...

race: ## unit tests under the race detector
	CGO_ENABLED=1 $(GO) test -race ./...

fuzz: ## run every fuzz target for FUZZTIME (20s) each
	@scripts/fuzz $(FUZZTIME)

e2e: setup build ## only the end-to-end tests in network namespaces, as root
	$(GO) test -count=1 -v ./bench/e2e/...

bench: build ## the road, the forwarding tables, the ports and the poll loop, measured
	./$(BIN) bench road
	./$(BIN) bench fib
	./$(BIN) bench ports
	./$(BIN) bench jitter

lint: ## gofmt, vet, import directions, size of files
	@test -z "$$(gofmt -l .)" || { echo "gofmt would change:"; gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) test ./internal/archtest/

setup: ## install what the demo and the tests need
	@scripts/setup

clean: ## remove what was built
	rm -rf bin

.PHONY: help build build-dpdk test-dpdk demo test race fuzz e2e bench lint setup clean
.DEFAULT_GOAL := help
