package upstream

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/onsi/ginkgo/v2/types"
)

//go:embed named.txt
var namedList string

// Named are the full names of the tests that `make test` runs.
func Named() []string {
	var out []string
	for _, l := range strings.Split(namedList, "\n") {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "#") {
			out = append(out, l)
		}
	}
	return out
}

// Spec is one test of the suite as a run left it.
type Spec struct {
	Name    string
	State   string // passed, failed, skipped and the like, as types.SpecState has it
	Reason  string // why upstream skipped it, or how it failed
	Output  string // the end of what a failed one wrote
	RunTime time.Duration
}

// Passed, Failed and Skipped are the three ways that a test can end. An interrupted one has failed.
func (s Spec) Passed() bool { return s.State == types.SpecStatePassed.String() }

// Skipped is a test that did not run, because it was not selected or because it found that it cannot.
func (s Spec) Skipped() bool {
	return s.State == types.SpecStateSkipped.String() || s.State == types.SpecStatePending.String()
}

// Failed is every other end.
func (s Spec) Failed() bool { return !s.Passed() && !s.Skipped() }

const suitePrefix = "External Storage "

// readReport reads ginkgo's JSON report. What the binary links beside the storage tests is left out; what failed outside
// of any test (before or after the suite) is a spec of its own.
func readReport(file string) ([]Spec, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("ginkgo left no report: %w", err)
	}
	var reports []types.Report
	if err := json.Unmarshal(b, &reports); err != nil {
		return nil, fmt.Errorf("ginkgo's report %s: %w", file, err)
	}
	var out []Spec
	for _, r := range reports {
		for _, s := range r.SpecReports {
			spec := Spec{Name: s.FullText(), State: s.State.String(), RunTime: s.RunTime, Reason: s.FailureMessage()}
			if spec.Failed() {
				spec.Output = tail(s.CapturedGinkgoWriterOutput+s.CapturedStdOutErr, 60)
			}
			isTest := s.LeafNodeType == types.NodeTypeIt
			if isTest && strings.HasPrefix(spec.Name, suitePrefix) || !isTest && spec.Failed() {
				if !isTest {
					spec.Name = s.LeafNodeType.String() + " " + spec.Name
				}
				out = append(out, spec)
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("ginkgo's report %s has no test of storage", file)
	}
	slices.SortFunc(out, func(a, b Spec) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func tail(s string, lines int) string {
	l := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(l[max(0, len(l)-lines):], "\n")
}

// Short is a test's name without what is the same for all of them.
func Short(name string) string {
	name = strings.TrimPrefix(name, suitePrefix)
	name = strings.Replace(name, "[Driver: csi.vmdk-csi.io-", "[", 1)
	return strings.Join(strings.Fields(strings.ReplaceAll(name, "[Testpattern: ", "[")), " ")
}
