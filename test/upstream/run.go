package upstream

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vmdk-csi/vmdk-csi/test/cluster"
)

// Selection is one call of ginkgo.
type Selection struct {
	Focus   []string // patterns; empty: every storage test
	Skip    []string // patterns
	Procs   int      // processes that run tests side by side
	Timeout time.Duration
	DryRun  bool
}

// Runner knows where the tools are and how the tests reach the cluster.
type Runner struct {
	Bin        string // of hack/tools/build.sh upstream
	Drivers    string // directory with the drivers' definitions
	Kubeconfig string
	SSHKey     string // of the nodes; empty: they have no ssh server
	Out        io.Writer
}

// NewRunner finds the tools, which hack/setup.sh built.
func NewRunner(ctx context.Context, out io.Writer) (Runner, error) {
	path, err := exec.CommandContext(ctx, filepath.Join(cluster.Repo(), "hack/tools/build.sh"), "--path", "upstream").Output()
	if err != nil {
		return Runner{}, fmt.Errorf("hack/tools/build.sh --path upstream: %w", err)
	}
	r := Runner{
		Bin:        strings.TrimSpace(string(path)),
		Drivers:    filepath.Join(cluster.Repo(), "test/upstream/drivers"),
		Kubeconfig: os.Getenv("KUBECONFIG"),
		Out:        out,
	}
	if _, err := os.Stat(filepath.Join(r.Bin, "upstream.test")); err != nil {
		return Runner{}, fmt.Errorf("the suite is not built, run hack/setup.sh: %w", err)
	}
	return r, nil
}

// Run runs the tests of a selection and returns all tests that the suite has, those that were not selected as skipped. That
// tests failed is no error.
func (r Runner) Run(ctx context.Context, s Selection) ([]Spec, error) {
	dir, err := os.MkdirTemp("", "upstream-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	argv := append(cluster.InNetwork(), append([]string{filepath.Join(r.Bin, "ginkgo")}, r.arguments(s, dir)...)...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "KUBE_SSH_KEY_PATH="+r.SSHKey, "KUBE_SSH_USER=root")
	cmd.Stdout, cmd.Stderr = r.Out, r.Out
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	runErr := cmd.Run()
	specs, err := readReport(filepath.Join(dir, "report.json"))
	if err != nil {
		return nil, fmt.Errorf("%w (ginkgo: %v)", err, runErr)
	}
	return specs, nil
}

func (r Runner) arguments(s Selection, dir string) []string {
	focus := s.Focus
	if len(focus) == 0 {
		focus = []string{suitePrefix}
	}
	args := []string{"run", "--no-color", "--json-report=report.json", "--output-dir=" + dir, fmt.Sprintf("--procs=%d", s.Procs),
		"--timeout=" + s.Timeout.String(), "--poll-progress-after=0"}
	for _, p := range focus {
		args = append(args, "--focus="+p)
	}
	for _, p := range s.Skip {
		args = append(args, "--skip="+p)
	}
	if s.DryRun {
		args = append(args, "--dry-run")
	}
	args = append(args, filepath.Join(r.Bin, "upstream.test"), "--",
		"-kubeconfig="+r.Kubeconfig, "-provider=local", "-repo-root="+r.Drivers)
	for _, d := range []string{"node.yaml", "shared.yaml"} {
		args = append(args, "-storage.testdriver="+filepath.Join(r.Drivers, d))
	}
	return args
}

// exactly is a pattern that fits one full name. Ginkgo matches a name with the suite's before it.
func exactly(name string) string { return "(^| )" + regexp.QuoteMeta(name) + "$" }

// merge joins two runs of the same suite: a test that ran in either did run.
func merge(a, b []Spec) []Spec {
	ran := map[string]Spec{}
	for _, s := range b {
		if !s.Skipped() || s.Reason != "" {
			ran[s.Name] = s
		}
	}
	out := slices.Clone(a)
	for i, s := range out {
		if other, ok := ran[s.Name]; ok {
			out[i] = other
			delete(ran, s.Name)
		}
	}
	for _, s := range b { // what failed outside of any test
		if _, ok := ran[s.Name]; ok {
			out = append(out, s)
		}
	}
	return out
}
