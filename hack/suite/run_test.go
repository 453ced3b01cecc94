package main

import (
	"io"
	"strings"
	"testing"
)

func collect(t *testing.T, events ...event) result {
	t.Helper()
	c := collector{output: map[string][]string{}, parents: map[string]bool{}, log: io.Discard, say: func(string) {}}
	for _, e := range events {
		c.take(e)
	}
	return c.result
}

func TestCollectorCountsLeaves(t *testing.T) {
	r := collect(t,
		event{Action: "run", Package: "p", Test: "TestA"},
		event{Action: "run", Package: "p", Test: "TestA/one"},
		event{Action: "pass", Package: "p", Test: "TestA/one"},
		event{Action: "run", Package: "p", Test: "TestA/two"},
		event{Action: "fail", Package: "p", Test: "TestA/two"},
		event{Action: "fail", Package: "p", Test: "TestA"},
		event{Action: "run", Package: "p", Test: "TestB"},
		event{Action: "output", Package: "p", Test: "TestB", Output: "    b_test.go:7: no such kernel feature\n"},
		event{Action: "skip", Package: "p", Test: "TestB"},
		event{Action: "fail", Package: "p"},
	)
	if r.passed != 1 || r.failed != 1 || len(r.skips) != 1 {
		t.Fatalf("passed %d failed %d skips %v", r.passed, r.failed, r.skips)
	}
	if r.skips[0].reason != "no such kernel feature" {
		t.Errorf("reason %q", r.skips[0].reason)
	}
}

func TestPackageFailureWithoutTestIsCounted(t *testing.T) {
	r := collect(t,
		event{Action: "run", Package: "p", Test: "TestA"},
		event{Action: "pass", Package: "p", Test: "TestA"},
		event{Action: "output", Package: "p", Output: "panic: leaked goroutine\n"},
		event{Action: "fail", Package: "p"},
	)
	if r.passed != 1 || r.failed != 1 || !strings.Contains(strings.Join(r.failures[0].output, ""), "leaked") {
		t.Fatalf("%+v", r)
	}
}
