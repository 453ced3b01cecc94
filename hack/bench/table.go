package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
)

// Value is a number with its unit, as people read it.
type value struct {
	n    float64
	unit string // ms, MiB/s, /s
}

func duration(d time.Duration) value { return value{float64(d) / float64(time.Millisecond), "ms"} }

func (v value) String() string {
	digits := 0
	switch {
	case v.n < 10:
		digits = 2
	case v.n < 100:
		digits = 1
	}
	return fmt.Sprintf("%.*f %s", digits, v.n, v.unit)
}

// Row is one number beside a peer's.
type row struct {
	what   string
	ours   value
	beside string // what the peer is, "" for none
	theirs value
	goal   goal
}

// Goal is what a number should reach; nil for none. It tells what is asked for, and whether the row has it: a ratio is missed below
// nine tenths of it, because machines differ from minute to minute.
type goal func(row) (asked string, reached bool)

const slack = 0.9

func atLeast(ratio float64) goal {
	return func(r row) (string, bool) {
		return fmt.Sprintf("ratio %.2f", ratio), r.theirs.n > 0 && r.ours.n/r.theirs.n >= slack*ratio
	}
}

func atMost(limit value) goal {
	return func(r row) (string, bool) { return "at most " + limit.String(), r.ours.n <= limit.n }
}

func (r row) aim() string {
	if r.goal == nil {
		return ""
	}
	asked, reached := r.goal(r)
	if reached {
		return asked + ", reached"
	}
	return asked + ", MISSED"
}

// Ratio is ours as a multiple of theirs.
func (r row) ratio() string {
	if r.beside == "" || r.theirs.n == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", r.ours.n/r.theirs.n)
}

func (r row) peer() string {
	if r.beside == "" {
		return ""
	}
	return r.theirs.String()
}

// Part is what one section found.
type part struct {
	title, about string
	rows         []row
}

var headings = []string{"measured", "value", "beside", "its value", "ratio", "target"}

func writeText(w io.Writer, parts []part) error {
	t := cli.NewTable(strings.ToUpper(headings[0]), ">"+strings.ToUpper(headings[1]), strings.ToUpper(headings[2]),
		">"+strings.ToUpper(headings[3]), ">"+strings.ToUpper(headings[4]), strings.ToUpper(headings[5]))
	for _, p := range parts {
		for _, r := range p.rows {
			t.Row(r.what, r.ours.String(), r.beside, r.peer(), r.ratio(), r.aim())
		}
	}
	return t.Write(w)
}

func writeMarkdown(w io.Writer, parts []part) {
	for _, p := range parts {
		fmt.Fprintf(w, "### %s\n\n%s\n\n| %s |\n|---|--:|---|--:|--:|---|\n", p.title, p.about, strings.Join(headings, " | "))
		for _, r := range p.rows {
			fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", r.what, r.ours, r.beside, r.peer(), r.ratio(), r.aim())
		}
		fmt.Fprintln(w)
	}
}

// The results stand between these lines of the page; what is around them is written by people.
const (
	resultsBegin = "<!-- results: written by `make bench BENCH=\"-docs docs/benchmarks.md\"` -->\n"
	resultsEnd   = "<!-- end of results -->\n"
)

// Replace puts results into the page.
func replace(page, results string) (string, error) {
	before, rest, ok := strings.Cut(page, resultsBegin)
	_, after, ok2 := strings.Cut(rest, resultsEnd)
	if !ok || !ok2 {
		return "", fmt.Errorf("the page has no lines %q and %q", resultsBegin, resultsEnd)
	}
	return before + resultsBegin + "\n" + results + resultsEnd + after, nil
}

func updatePage(path, results string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := replace(string(page), results)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(text), 0o644)
}
