# Two targets do everything on a fresh Debian or Ubuntu machine, as root: `make demo` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo demo-down test test-% test-upstream crash-long peer-long fuzz bench setup build images generate lint fmt clean

##@ For everybody
help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9%-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## bring up a cluster, install the chart, show a claim that becomes a VMDK and survives its worker's death
	@hack/demo.sh

demo-down: ## remove everything that the demo brought up
	@hack/demo.sh down

test: ## run every suite; ends with the count of passed, failed and skipped tests
	@hack/test.sh

##@ For contributors
test-%: ## run one suite, as in `make test-unit` (hack/test.sh -list names them)
	@hack/test.sh $*

test-upstream: ## run every storage test of Kubernetes that the driver can do; writes docs/upstream-tests.md (most of an hour)
	@hack/test.sh upstream-all

crash-long: ## crash enumeration of all sequences of up to three deeds and all failures in them, on every kind of disk; DEEDS=5: COUNT=100 samples of that length for each (most of an hour)
	@GOGC=400 VMDK_CSI_CHAIN=long go test ./pkg/vmdk/chain -count=1 -v -timeout 24h -run 'TestSequences|TestSequenceFailures|TestEverySyncOf|TestEditCrashes' $(if $(DEEDS),-skip 'TestSequenceFailures|TestEverySyncOf|TestEditCrashes')

peer-long: ## COUNT=1000 random sequences on every format (KIND=type: on one) against qemu and libvmdk; SEED=n replays (minutes)
	@hack/peers.sh

fuzz: ## run every fuzz target for FUZZTIME each (60s)
	@hack/fuzz.sh

bench: ## measure snapshots, restores and consolidation beside qemu-img (BENCH=-help shows the options)
	@hack/bench.sh $(BENCH)

setup: ## install packages and build the tools that tests and demo need (slow the first time)
	@hack/setup.sh

build: ## build the four programs into bin/
	@hack/build.sh

images: ## build the container images without a registry
	@hack/images.sh

generate: ## make CRDs, deep copies, manifests and generated docs anew
	@hack/generate.sh

lint: ## run golangci-lint, which also enforces the import floors
	@hack/lint.sh

fmt: ## format the Go code
	@gofmt -w cmd pkg internal test hack

clean: ## remove what was built in the tree
	@rm -rf bin dist
