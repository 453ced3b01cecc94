package main

import (
	"bytes"
	"testing"
	"time"
)

func someParts() []part {
	return []part{{title: "Pause", about: "A snapshot under load.", rows: []row{
		{what: "p50", ours: duration(2500 * time.Microsecond), beside: "1 GiB", theirs: duration(2 * time.Millisecond), goal: atLeast(1.3)},
		{what: "rate", ours: value{123.4, "MiB/s"}, goal: atMost(value{100, "MiB/s"})},
		{what: "late", ours: duration(time.Second), beside: "nothing", theirs: value{0, "ms"}},
	}}}
}

func TestText(t *testing.T) {
	var b bytes.Buffer
	if err := writeText(&b, someParts()); err != nil {
		t.Fatal(err)
	}
	want := `MEASURED      VALUE  BESIDE   ITS VALUE  RATIO  TARGET
p50         2.50 ms  1 GiB      2.00 ms   1.25  ratio 1.30, reached
rate      123 MiB/s  -                -      -  at most 100 MiB/s, MISSED
late        1000 ms  nothing    0.00 ms      -  -
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestMarkdown(t *testing.T) {
	var b bytes.Buffer
	writeMarkdown(&b, someParts())
	want := `### Pause

A snapshot under load.

| measured | value | beside | its value | ratio | target |
|---|--:|---|--:|--:|---|
| p50 | 2.50 ms | 1 GiB | 2.00 ms | 1.25 | ratio 1.30, reached |
| rate | 123 MiB/s |  |  |  | at most 100 MiB/s, MISSED |
| late | 1000 ms | nothing | 0.00 ms |  |  |

`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestReplace(t *testing.T) {
	page := "# Title\n" + resultsBegin + "old\n" + resultsEnd + "Words.\n"
	got, err := replace(page, "new\n")
	if want := "# Title\n" + resultsBegin + "\nnew\n" + resultsEnd + "Words.\n"; err != nil || got != want {
		t.Errorf("replace = %q, %v", got, err)
	}
	if again, err := replace(got, "new\n"); err != nil || again != got {
		t.Errorf("a second time: %q, %v", again, err)
	}
	for _, bad := range []string{"", "# Title\n", resultsBegin, resultsEnd + resultsBegin} {
		if _, err := replace(bad, "new\n"); err == nil {
			t.Errorf("replace in %q worked", bad)
		}
	}
}
