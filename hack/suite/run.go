package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

type failure struct {
	name   string
	output []string
}

type skip struct{ name, reason string }

type result struct {
	passed, failed int
	failures       []failure
	skips          []skip
}

func (r *result) add(o result) {
	r.passed += o.passed
	r.failed += o.failed
	r.failures = append(r.failures, o.failures...)
	r.skips = append(r.skips, o.skips...)
}

// report prints what failed with the end of its output.
func (r *result) report(w io.Writer) {
	const tail = 60
	for _, f := range r.failures {
		fmt.Fprintf(w, "FAILED %s\n", f.name)
		out := f.output
		if len(out) > tail {
			fmt.Fprintf(w, "    (%d lines before these are in the log)\n", len(out)-tail)
			out = out[len(out)-tail:]
		}
		for _, l := range out {
			fmt.Fprintf(w, "    %s\n", strings.TrimRight(l, "\n"))
		}
	}
}

// start runs argv in a process group of its own, so that an interrupt ends all of it.
func start(ctx context.Context, argv, env []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	return cmd
}

// run runs the suite with its whole output in the file log. say is given a line for each part that is done.
func (s suite) run(ctx context.Context, log string, say func(string)) result {
	f, err := os.Create(log)
	if err != nil {
		return result{failed: 1, failures: []failure{{s.name, []string{err.Error()}}}}
	}
	defer f.Close()
	if s.goTest != nil {
		return s.runGoTest(ctx, f, say)
	}
	return s.runCommand(ctx, f)
}

func (s suite) runCommand(ctx context.Context, log io.Writer) result {
	cmd := start(ctx, s.command, s.env)
	var buf bytes.Buffer
	cmd.Stdout = io.MultiWriter(log, &buf)
	cmd.Stderr = cmd.Stdout
	if err := cmd.Run(); err != nil {
		return result{failed: 1, failures: []failure{{s.name, append(strings.Split(buf.String(), "\n"), err.Error())}}}
	}
	return result{passed: 1}
}

// event is a line of `go test -json` (go doc test2json).
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

func (s suite) runGoTest(ctx context.Context, log io.Writer, say func(string)) result {
	cmd := start(ctx, append([]string{"go", "test", "-json", "-count=1"}, s.goTest...), s.env)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return result{failed: 1, failures: []failure{{s.name, []string{err.Error()}}}}
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return result{failed: 1, failures: []failure{{s.name, []string{err.Error()}}}}
	}
	c := collector{output: map[string][]string{}, parents: map[string]bool{}, log: log, say: say}
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e event
		if json.Unmarshal(sc.Bytes(), &e) != nil {
			e = event{Action: "output", Output: sc.Text() + "\n"}
		}
		c.take(e)
	}
	err = cmd.Wait()
	_, _ = log.Write(stderr.Bytes())
	if err != nil && c.failed == 0 {
		c.failed++
		c.failures = append(c.failures, failure{s.name, append(strings.Split(stderr.String(), "\n"), err.Error())})
	}
	return c.result
}

// collector counts the leaves: a test with subtests is counted by these, and by itself only when it failed alone.
type collector struct {
	result
	output  map[string][]string
	parents map[string]bool
	log     io.Writer
	say     func(string)
}

func (c *collector) take(e event) {
	key := e.Package + "." + e.Test
	if e.ImportPath != "" {
		key = e.ImportPath + "."
	}
	switch e.Action {
	case "output", "build-output":
		fmt.Fprint(c.log, e.Output)
		c.output[key] = append(c.output[key], e.Output)
		return
	case "run":
		if i := strings.LastIndexByte(e.Test, '/'); i > 0 {
			c.parents[e.Package+"."+e.Test[:i]] = true
		}
		return
	case "pass":
		if e.Test != "" && !c.parents[key] {
			c.passed++
		} else if e.Test == "" {
			c.say(fmt.Sprintf("ok    %-50s %6.1fs", short(e.Package), e.Elapsed))
		}
	case "skip":
		if e.Test != "" && !c.parents[key] {
			c.skips = append(c.skips, skip{short(e.Package) + " " + e.Test, reason(c.output[key])})
		}
	case "fail":
		c.fail(e, key)
	case "build-fail":
		c.failed++
		c.failures = append(c.failures, failure{"build " + short(e.ImportPath), c.output[key]})
	}
	delete(c.output, key)
}

func (c *collector) fail(e event, key string) {
	switch {
	case e.Test != "" && c.parents[key] && c.failedBelow(short(e.Package)+" "+e.Test+"/"):
	case e.Test != "":
		c.failed++
		c.failures = append(c.failures, failure{short(e.Package) + " " + e.Test, c.output[key]})
	default:
		c.say(fmt.Sprintf("FAIL  %-50s %6.1fs", short(e.Package), e.Elapsed))
		prefix := short(e.Package) + " "
		if c.failedBelow(prefix) {
			return
		}
		// a panic, a leak found by TestMain, a build failure: no single test carries it
		c.failed++
		c.failures = append(c.failures, failure{prefix + "(package)", c.output[key]})
	}
}

func (c *collector) failedBelow(prefix string) bool {
	return slices.ContainsFunc(c.failures, func(f failure) bool { return strings.HasPrefix(f.name, prefix) })
}

func short(pkg string) string { return strings.TrimPrefix(pkg, "github.com/vmdk-csi/vmdk-csi/") }

// reason is what t.Skip said: the last line that names a source position.
func reason(out []string) string {
	for i := len(out) - 1; i >= 0; i-- {
		l := strings.TrimSpace(out[i])
		if strings.HasPrefix(l, "---") || strings.HasPrefix(l, "===") || l == "" {
			continue
		}
		if _, after, ok := strings.Cut(l, ".go:"); ok {
			if _, text, ok := strings.Cut(after, ": "); ok {
				return text
			}
		}
		return l
	}
	return "no reason given"
}
