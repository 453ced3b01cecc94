//go:build e2e

package upstream

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/test/cluster"
)

// disruptive marks the tests that stop a node's kubelet; nothing may run beside them.
const disruptive = `\[Disruptive\]`

// leastNamed is how many tests a run of the named ones must have run to prove anything.
const leastNamed = 15

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	ctx := context.Background()
	defer func() {
		if err := cluster.Leave(ctx, os.Stdout, code == 0); err != nil {
			fmt.Fprintln(os.Stderr, "upstream: the cluster was not removed:", err)
			code = 1
		}
	}()
	if err := setUp(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "upstream: set-up failed:", err)
		cluster.Dump(os.Stdout)
		return 1
	}
	if code = m.Run(); code != 0 {
		cluster.Dump(os.Stdout)
	}
	return code
}

func setUp(ctx context.Context) error {
	if err := cluster.Enter(ctx, os.Stdout); err != nil {
		return err
	}
	images, err := exec.CommandContext(ctx, filepath.Join(cluster.Repo(), "hack/images/build.sh"), "upstream-tests").Output()
	if err != nil {
		return fmt.Errorf("hack/images/build.sh upstream-tests: %w", err)
	}
	if err := cluster.Load(ctx, os.Stdout, strings.Fields(string(images))...); err != nil {
		return err
	}
	for _, f := range []string{"classes.yaml", "snapshotclass.yaml"} {
		out, err := exec.CommandContext(ctx, "kubectl", "apply", "-f", filepath.Join("drivers", f)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("kubectl apply -f %s: %w: %s", f, err, out)
		}
	}
	return nil
}

// TestNamed runs the tests of named.txt.
func TestNamed(t *testing.T) {
	r := newRunner(t)
	names := Named()
	s := Selection{Procs: 6, Timeout: 12 * time.Minute}
	for _, n := range names {
		s.Focus = append(s.Focus, exactly(n))
	}
	specs, err := r.Run(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, n := range names {
		t.Run(Short(n), func(t *testing.T) {
			for _, spec := range specs {
				if spec.Name == n {
					report(t, spec)
					if spec.Skipped() {
						t.Fatalf("it did not run: %s", spec.Reason)
					}
					ran++
					return
				}
			}
			t.Fatal("the suite has no such test: was it renamed?")
		})
	}
	outsideTests(t, specs)
	if ran < leastNamed {
		t.Errorf("%d tests ran, that is fewer than %d", ran, leastNamed)
	}
}

// TestAll runs every test that the drivers' definitions select and writes docs/upstream-tests.md.
func TestAll(t *testing.T) {
	r := newRunner(t)
	ssh, err := serveSSH(t.Context(), r.Bin, os.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := ssh.stop(); err != nil {
			t.Error(err)
		}
	}()
	r.SSHKey = ssh.key()
	m, err := ThisMachine()
	if err != nil {
		t.Fatal(err)
	}
	res := Result{Date: time.Now(), Machine: m, Kubernetes: output(t, "kubectl", "get", "nodes", "-o", "jsonpath={.items[0].status.nodeInfo.kubeletVersion}"),
		Kernel: output(t, "uname", "-r"), Commit: output(t, "git", "-C", cluster.Repo(), "describe", "--always", "--dirty")}
	res.Specs = r.all(t, m)
	res.Took = time.Since(res.Date)
	outsideTests(t, res.Specs)
	for _, s := range res.Specs {
		if !strings.HasPrefix(s.Name, suitePrefix) {
			continue
		}
		t.Run(Short(s.Name), func(t *testing.T) {
			report(t, s)
			if s.Skipped() {
				t.Skip(firstLine(s.Reason))
			}
		})
	}
	if _, unexplained := res.skipped(); len(unexplained) > 0 {
		t.Errorf("no reason is known why these did not run:\n%s", strings.Join(unexplained, "\n"))
	}
	f, err := os.Create(filepath.Join(cluster.Repo(), "docs/upstream-tests.md"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := res.WriteMarkdown(f); err != nil {
		t.Error(err)
	}
}

// all runs the tests that leave the nodes alone side by side, and after them those that stop a kubelet, one by one.
func (r Runner) all(t *testing.T, m Machine) []Spec {
	var skip []string
	for _, d := range Deselected(m) {
		skip = append(skip, d.Pattern)
	}
	specs, err := r.Run(t.Context(), Selection{Skip: append(skip, disruptive), Procs: 8, Timeout: 90 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	more, err := r.Run(t.Context(), Selection{Focus: []string{suitePrefix + ".*" + disruptive}, Skip: skip, Procs: 1, Timeout: 60 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return merge(specs, more)
}

func newRunner(t *testing.T) Runner {
	t.Helper()
	r, err := NewRunner(t.Context(), os.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func report(t *testing.T, s Spec) {
	t.Helper()
	if s.Failed() {
		t.Errorf("%s: %s\n%s", s.State, s.Reason, s.Output)
	} else if s.Passed() {
		t.Logf("took %s", s.RunTime.Round(time.Second))
	}
}

// outsideTests fails for what failed before or after the tests, and for a deselection that fits no test any more.
func outsideTests(t *testing.T, specs []Spec) {
	t.Helper()
	for _, d := range deselections {
		if !slices.ContainsFunc(specs, func(s Spec) bool { return d.Fits(s.Name) }) {
			t.Errorf("no test fits the deselection %s: was it renamed?", d.Pattern)
		}
	}
	for _, s := range specs {
		if !strings.HasPrefix(s.Name, suitePrefix) && s.Failed() {
			t.Errorf("%s: %s: %s\n%s", s.Name, s.State, s.Reason, s.Output)
		}
	}
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}
