package upstream

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Result is a run of every test.
type Result struct {
	Date       time.Time
	Took       time.Duration
	Kubernetes string // version
	Kernel     string
	Commit     string // of the tree that was tested
	Machine    Machine
	Specs      []Spec
}

// skipped groups the tests that did not run by reason, the largest group first. A test that was deselected has that reason;
// one that upstream itself skipped has upstream's. unexplained have none: they are an error of the selection.
func (r Result) skipped() (groups []group, unexplained []string) {
	by := map[string]*group{}
	for _, s := range r.Specs {
		if !s.Skipped() {
			continue
		}
		reason := "upstream: " + firstLine(s.Reason)
		if s.Reason == "" {
			if reason = r.deselectedBecause(s.Name); reason == "" {
				unexplained = append(unexplained, s.Name)
				continue
			}
		}
		if by[reason] == nil {
			by[reason] = &group{reason: reason}
		}
		by[reason].names = append(by[reason].names, s.Name)
	}
	for _, g := range by {
		groups = append(groups, *g)
	}
	slices.SortFunc(groups, func(a, b group) int {
		if n := len(b.names) - len(a.names); n != 0 {
			return n
		}
		return strings.Compare(a.reason, b.reason)
	})
	return groups, unexplained
}

type group struct {
	reason string
	names  []string
}

func (r Result) deselectedBecause(name string) string {
	for _, d := range Deselected(r.Machine) {
		if d.Fits(name) {
			return d.Reason
		}
	}
	return ""
}

// count returns how many tests ended in each way.
func (r Result) count() (passed, failed, skipped int) {
	for _, s := range r.Specs {
		switch {
		case s.Passed():
			passed++
		case s.Failed():
			failed++
		default:
			skipped++
		}
	}
	return passed, failed, skipped
}

// WriteMarkdown writes docs/upstream-tests.md.
func (r Result) WriteMarkdown(w io.Writer) error {
	passed, failed, skipped := r.count()
	var b strings.Builder
	fmt.Fprintf(&b, `# Kubernetes' storage tests

The tests of test/e2e/storage/external of Kubernetes %s against the driver on a kind cluster with two workers, once on a
datastore of scope node (ext4 by default) and once on one of scope shared (XFS by default). What the driver declares is in
[test/upstream/drivers](../test/upstream/drivers). `+"`make test-upstream`"+` runs them and writes this page.

| | |
|---|---|
| last run | %s, %s |
| tree | %s |
| machine | Linux %s, %s |
| tests | %d passed, %d failed, %d not run |
`, r.Kubernetes, r.Date.UTC().Format("2006-01-02 15:04 MST"), r.Took.Round(time.Second), r.Commit, r.Kernel, r.Machine, passed, failed, skipped)
	if failed > 0 {
		b.WriteString("\n## Failed\n\n")
		for _, s := range r.Specs {
			if s.Failed() {
				fmt.Fprintf(&b, "- %s: %s\n", code(Short(s.Name)), firstLine(s.Reason))
			}
		}
	}
	b.WriteString("\n## Not run, and why\n")
	groups, unexplained := r.skipped()
	if len(unexplained) > 0 {
		groups = append(groups, group{"No reason is known for these: the run was not complete.", unexplained})
	}
	for _, g := range groups {
		fmt.Fprintf(&b, "\n%s\n\n", g.reason)
		for _, n := range g.names {
			fmt.Fprintf(&b, "- %s\n", code(Short(n)))
		}
	}
	b.WriteString("\n## Passed\n\n| seconds | test |\n|--:|---|\n")
	for _, s := range r.Specs {
		if s.Passed() {
			fmt.Fprintf(&b, "| %.0f | %s |\n", s.RunTime.Seconds(), code(Short(s.Name)))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// String says what of the machine decides about tests.
func (m Machine) String() string {
	has := func(what string, yes bool) string {
		if yes {
			return "with " + what
		}
		return "without " + what
	}
	return strings.Join([]string{has("CAP_SYS_RESOURCE", m.SysResource), has("SELinux", m.SELinux), has("a registry", m.Registry)}, ", ")
}

func code(s string) string { return "`" + strings.ReplaceAll(s, "|", "/") + "`" }

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}
