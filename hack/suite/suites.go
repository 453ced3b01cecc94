package main

import (
	"cmp"
	"slices"
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

	stage   int
	lane    string // empty: the suite's own
	cluster bool   // it needs the kind cluster
	extra   bool   // it runs only when it is named
}

// noVet: golangci-lint has vetted everything that has no build tag.
const noVet = "-vet=off"

// suites in the order in which a defect shows cheapest.
func suites() []suite {
	return []suite{
		{name: "generated", stage: 1, lane: "sources", about: "generated files are current", command: []string{"hack/generate.sh", "--check"}},
		{name: "lint", stage: 1, lane: "sources", about: "golangci-lint: the floors (depguard) and the usual analysers",
			command: []string{"hack/lint.sh"}},
		{name: "unit", stage: 1,
			about: "unit tests, conformance suites, engine against peers, fuzz corpora; under the race detector",
			// A program under the race detector waits a second before it ends, in case a race is still to be told.
			env: []string{"CGO_ENABLED=1", "GORACE=atexit_sleep_ms=0"},
			goTest: []string{"-timeout=20m", noVet, "-short", "-race",
				"./cmd/...", "./pkg/...", "./internal/...", "./charts/...", "./hack/...", "./test/upstream"}},
		{name: "crash", stage: 2, about: "crash enumeration, failing operations and the tree of disks in full; a worker's walls, which need a program without cgo",
			// The simulator makes garbage: to collect it less often saves a third of the time.
			env:    []string{"CGO_ENABLED=0", "VMDK_CSI_CHAIN=full", "GOGC=400"},
			goTest: []string{"-timeout=30m", noVet, "./internal/crash", "./internal/sys", "./pkg/vmdk", "./pkg/vmdk/chain", "./pkg/volume"}},
		{name: "sanity", stage: 2, lane: "sanity", about: "csi-sanity against the local and the Kubernetes adapter",
			env: []string{"CGO_ENABLED=0"}, goTest: []string{"-timeout=15m", noVet, "./test/sanity/..."}},
		{name: "guest", stage: 2, lane: "sanity", about: "a QEMU machine with Debian's kernel: VMDKs are added, staged, written, pulled out and removed while it runs",
			env: []string{"CGO_ENABLED=0"}, goTest: []string{"-timeout=15m", noVet, "./test/guest/..."}},
		{name: "takeover", stage: 3, about: "kill -9 of worker, hostd and node plugin under verified load",
			goTest: []string{"-timeout=20m", noVet, "./test/takeover/..."}, env: []string{"VMDK_CSI_TAKEOVER=full"}},
		{name: "e2e", stage: 3, lane: "cluster", cluster: true,
			about:  "real pods on a kind cluster: everything the demo shows, every access mode, faults",
			goTest: []string{"-timeout=25m", "-parallel=6", "-tags=e2e", "./test/e2e/..."}},
		{name: "upstream", stage: 3, lane: "cluster", cluster: true,
			about:  "fifteen of Kubernetes' own storage tests (test/upstream/named.txt)",
			goTest: []string{"-timeout=20m", "-tags=e2e", "-run=^TestNamed$", "./test/upstream"}},
		{name: "upstream-all", stage: 4, lane: "cluster", cluster: true, extra: true,
			about:  "every storage test of Kubernetes that the driver's capabilities select; writes docs/upstream-tests.md",
			goTest: []string{"-timeout=180m", "-tags=e2e", "-run=^TestAll$", "./test/upstream"}},
	}
}

// stages groups suites: first by stage, then by lane. Lanes are in the order of their first suites.
func stages(todo []suite) [][]lane {
	todo = slices.Clone(todo)
	slices.SortStableFunc(todo, func(a, b suite) int { return cmp.Compare(a.stage, b.stage) })
	var out [][]lane
	for i, s := range todo {
		if i == 0 || s.stage != todo[i-1].stage {
			out = append(out, nil)
		}
		last := &out[len(out)-1]
		j := slices.IndexFunc(*last, func(l lane) bool { return s.lane != "" && l[0].lane == s.lane })
		if j < 0 {
			*last = append(*last, lane{s})
		} else {
			(*last)[j] = append((*last)[j], s)
		}
	}
	return out
}

// lane is suites that run one after the other.
type lane []suite
