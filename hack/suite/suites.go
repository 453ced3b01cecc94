package main

import (
	"context"
	"os"
)

// suite is one group of tests. Exactly one of goTest and command is set.
type suite struct {
	name  string
	about string
	// goTest are arguments of `go test -json -count=1`.
	goTest []string
	// command is a program whose exit status is one test.
	command []string
	env     []string
}

// suites in the order in which a defect shows cheapest.
func suites() []suite {
	return []suite{
		{name: "generated", about: "generated files are current", command: []string{"hack/generate.sh", "--check"}},
		{name: "lint", about: "golangci-lint: the floors (depguard) and the usual analysers", command: []string{"hack/lint.sh"}},
		{name: "unit", about: "unit tests, conformance suites, engine against peers, fuzz corpora; under the race detector",
			// A program under the race detector waits a second before it ends, in case a race is still to be told.
			env:    []string{"CGO_ENABLED=1", "GORACE=atexit_sleep_ms=0"},
			goTest: []string{"-timeout=15m", "-short", "-race", "./cmd/...", "./pkg/...", "./internal/...", "./charts/...", "./hack/..."}},
		{name: "crash", about: "crash enumeration in full; a worker's walls, which need a program without cgo", env: []string{"CGO_ENABLED=0"},
			goTest: []string{"-timeout=15m", "./internal/crash", "./internal/sys"}},
		{name: "sanity", about: "csi-sanity against the local and the Kubernetes adapter",
			goTest: []string{"-timeout=15m", "./test/sanity/..."}},
		{name: "takeover", about: "kill -9 of worker, hostd and node plugin under verified load",
			goTest: []string{"-timeout=20m", "./test/takeover/..."}, env: []string{"VMDK_CSI_TAKEOVER=full"}},
		{name: "e2e", about: "real pods on a kind cluster: everything the demo shows, every access mode, faults",
			goTest: []string{"-timeout=25m", "-parallel=4", "-tags=e2e", "./test/e2e/..."}},
	}
}

func (s suite) run(ctx context.Context, log string) result {
	f, err := os.Create(log)
	if err != nil {
		return result{failed: 1, failures: []failure{{s.name, []string{err.Error()}}}}
	}
	defer f.Close()
	if s.goTest != nil {
		return s.runGoTest(ctx, f)
	}
	return s.runCommand(ctx, f)
}
