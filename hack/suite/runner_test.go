package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// fake is a fixture that records what is done with it.
type fake struct {
	mu   sync.Mutex
	done []string
	err  error
}

func (f *fake) note(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = append(f.done, s)
}
func (f *fake) begin(context.Context)    { f.note("begin") }
func (f *fake) ready() ([]string, error) { f.note("ready"); return []string{"what up.sh said"}, f.err }
func (f *fake) environment() []string    { return []string{"FIXTURE=there"} }
func (f *fake) end(passed bool) error    { f.note(fmt.Sprint("end ", passed)); return nil }
func sh(name, script string) suite {
	return suite{name: name, about: "a test", command: []string{"sh", "-c", script}}
}
func onCluster(s suite, stage int) suite {
	s.cluster, s.stage, s.lane = true, stage, "cluster"
	return s
}
func atStage(s suite, n int, l string) suite { s.stage, s.lane = n, l; return s }

func runSuites(t *testing.T, f *fake, todo ...suite) (status int, out string) {
	t.Helper()
	var b bytes.Buffer
	r := &runner{logs: t.TempDir(), out: &b, cluster: f}
	status = r.runAll(t.Context(), stages(todo))
	t.Log(b.String())
	return status, b.String()
}

func lastLine(out string) string {
	l := strings.Split(strings.TrimSpace(out), "\n")
	return l[len(l)-1]
}

func TestStagesKeepLanesTogether(t *testing.T) {
	got := ""
	for _, st := range stages([]suite{atStage(sh("c", ""), 2, ""), atStage(sh("a", ""), 1, "x"), atStage(sh("b", ""), 1, ""),
		atStage(sh("d", ""), 1, "x"), atStage(sh("e", ""), 2, "")}) {
		for _, l := range st {
			for _, s := range l {
				got += s.name
			}
			got += "|"
		}
		got += " "
	}
	if got != "ad|b| c|e| " {
		t.Errorf("stages %q", got)
	}
}

// Two lanes that wait for each other can end only if they run beside each other.
func TestLanesRunBesideEachOther(t *testing.T) {
	dir := t.TempDir()
	meet := func(me, other string) string {
		return fmt.Sprintf("touch %[1]s/%[2]s; i=0; while [ ! -e %[1]s/%[3]s ]; do i=$((i+1)); [ $i -lt 500 ] || exit 1; sleep 0.02; done", dir, me, other)
	}
	status, out := runSuites(t, &fake{}, sh("left", meet("l", "r")), sh("right", meet("r", "l")))
	if status != 0 || lastLine(out) != "3 passed, 0 failed, 0 skipped" { // two suites, one look for leaks
		t.Errorf("status %d, last line %q", status, lastLine(out))
	}
}

func TestSuitesOfALaneRunInOrder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "order")
	status, _ := runSuites(t, &fake{},
		atStage(sh("first", "sleep 0.1; echo first >>"+file), 1, "x"), atStage(sh("second", "echo second >>"+file), 1, "x"))
	b, err := os.ReadFile(file)
	if err != nil || string(b) != "first\nsecond\n" || status != 0 {
		t.Errorf("status %d, order %q, %v", status, b, err)
	}
}

func TestFailureIsShownAndCounted(t *testing.T) {
	status, out := runSuites(t, &fake{}, sh("good", "true"), sh("bad", "echo why it failed; exit 3"))
	if status != 1 || lastLine(out) != "2 passed, 1 failed, 0 skipped" {
		t.Errorf("status %d, last line %q", status, lastLine(out))
	}
	for _, want := range []string{"FAILED bad\n    why it failed", "failed: bad\n", "-- good: 1 passed"} {
		if !strings.Contains(out, want) {
			t.Errorf("the output lacks %q", want)
		}
	}
}

func TestNothingRunIsFailure(t *testing.T) {
	if status, out := runSuites(t, &fake{}); status != 1 {
		t.Errorf("status %d of a run without tests: %s", status, out)
	}
}

func TestClusterIsThereForItsSuitesAndGoesAfterTheLast(t *testing.T) {
	f := &fake{}
	status, out := runSuites(t, f, atStage(sh("unit", `[ -z "$FIXTURE" ]`), 1, ""), onCluster(sh("e2e", `[ "$FIXTURE" = there ]`), 2),
		onCluster(sh("upstream", `[ "$FIXTURE" = there ]`), 2))
	if status != 0 || !slices.Equal(f.done, []string{"begin", "ready", "ready", "end true"}) {
		t.Errorf("status %d, fixture %q\n%s", status, f.done, out)
	}
	f = &fake{}
	runSuites(t, f, sh("unit", "true"))
	if len(f.done) != 0 {
		t.Errorf("a run that needs no cluster did %q", f.done)
	}
	f = &fake{}
	runSuites(t, f, onCluster(sh("e2e", "false"), 1))
	if !slices.Contains(f.done, "end false") {
		t.Errorf("after a failure the nodes' files were not kept: %q", f.done)
	}
}

func TestClusterThatDoesNotComeUpFailsItsSuitesAlone(t *testing.T) {
	f := &fake{err: errors.New("no room")}
	status, out := runSuites(t, f, sh("unit", "true"), onCluster(sh("e2e", "true"), 1), onCluster(sh("upstream", "true"), 1))
	if status != 1 || lastLine(out) != "4 passed, 2 failed, 0 skipped" || !strings.Contains(out, "what up.sh said\n    no room") {
		t.Errorf("status %d, last line %q", status, lastLine(out))
	}
	if !slices.Contains(f.done, "end false") {
		t.Errorf("the rest of it was not removed: %q", f.done)
	}
}

func TestInterruptRemovesTheCluster(t *testing.T) {
	f := &fake{}
	ctx, cancel := context.WithCancel(t.Context())
	started := filepath.Join(t.TempDir(), "started")
	go func() {
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(started); err == nil {
				break
			}
		}
		cancel()
	}()
	var b bytes.Buffer
	r := &runner{logs: t.TempDir(), out: &b, cluster: f}
	status := r.runAll(ctx, stages([]suite{onCluster(sh("e2e", "touch "+started+"; sleep 60"), 1), onCluster(sh("upstream", "true"), 2)}))
	if out := b.String(); status != 1 || !strings.Contains(out, "interrupted") || strings.Contains(out, "-- upstream") {
		t.Errorf("status %d:\n%s", status, out)
	}
	if !slices.Equal(f.done, []string{"begin", "ready", "end false"}) {
		t.Errorf("fixture: %q", f.done)
	}
}

func TestLeakedProcessFailsTheStage(t *testing.T) {
	settling = time.Second
	t.Cleanup(func() { settling = 15 * time.Second })
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "vmdk-leak")
	if err := os.WriteFile(program, b, 0o700); err != nil {
		t.Fatal(err)
	}
	pid := program + ".pid"
	status, out := runSuites(t, &fake{}, sh("leaky", program+" 60 >/dev/null 2>&1 & echo $! >"+pid+
		"; until [ \"$(readlink /proc/$!/exe)\" = "+program+" ]; do sleep 0.01; done"))
	kill := exec.Command("sh", "-c", "kill $(cat "+pid+")")
	if msg, err := kill.CombinedOutput(); err != nil {
		t.Errorf("end the leaked process: %v: %s", err, msg)
	}
	if status != 1 || lastLine(out) != "1 passed, 1 failed, 0 skipped" || !strings.Contains(out, "failed: leaky/leaks") {
		t.Errorf("status %d, last line %q", status, lastLine(out))
	}
}

func TestChosen(t *testing.T) {
	all, err := chosen(suites(), nil)
	if err != nil || len(all) < 8 || slices.ContainsFunc(all, func(s suite) bool { return s.extra }) {
		t.Errorf("all suites: %v, %v", all, err)
	}
	if one, err := chosen(suites(), []string{"upstream-all"}); err != nil || len(one) != 1 {
		t.Errorf("a named extra suite: %v, %v", one, err)
	}
	if _, err := chosen(suites(), []string{"nosuch"}); err == nil {
		t.Error("an unknown suite is no error")
	}
}
