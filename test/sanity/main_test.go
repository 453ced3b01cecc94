package sanity

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Set in the child that runs one backend; the file gets the outcome of every spec, one JSON object a line.
const (
	envBackend = "VMDK_CSI_SANITY_BACKEND"
	envReport  = "VMDK_CSI_SANITY_REPORT"
)

// backends by name. Each starts what the suite talks to.
var backends = map[string]func(t *testing.T, dir string) endpoints{
	"memory": startMemory,
	"local":  startLocal,
	"kube":   startKube,
}

// endpoints are where the services are and how to end them. stop returns after everything has ended.
type endpoints struct {
	node       string
	controller string // "": the same
	stop       func() error
	// left says what files of disks are still there; may be nil.
	left func() ([]string, error)
}

// outcome of one spec, from the child to the parent.
type outcome struct {
	Name, State, Reason string
}

func TestSanity(t *testing.T) {
	if name := os.Getenv(envBackend); name != "" {
		runBackend(t, name)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("not root: mounts and loop devices cannot be made")
	}
	t.Setenv(envBin, buildPrograms(t))
	for _, name := range []string{"memory", "local", "kube"} {
		t.Run(name, func(t *testing.T) { inChild(t, name) })
	}
}

// inChild runs a backend in a process with mounts of its own, and shows its specs as subtests.
func inChild(t *testing.T, name string) {
	dir := t.TempDir()
	report := filepath.Join(dir, "report")
	out, err := runChild(t, 15*time.Minute, "^TestSanity$", envBackend+"="+name, envReport+"="+report, "TMPDIR="+dir)
	specs := readReport(t, report)
	notDeclared := map[string]int{} // by reason
	for _, s := range specs {
		if s.State == "skipped" && undeclared(s.Reason) {
			notDeclared[s.Reason]++
			continue
		}
		t.Run(s.Name, func(t *testing.T) {
			if s.State != "passed" {
				t.Errorf("%s: %s", s.State, s.Reason)
			}
		})
	}
	for _, why := range slices.Sorted(maps.Keys(notDeclared)) {
		t.Run("not declared", func(t *testing.T) { t.Skipf("%d specs: %s", notDeclared[why], why) })
	}
	if err != nil || len(specs) < 50 || t.Failed() {
		t.Logf("%s", out)
	}
	if err != nil && !t.Failed() {
		t.Errorf("backend %s: %v", name, err)
	}
	if len(specs) < 50 {
		t.Errorf("only %d specs ran", len(specs))
	}
	// Both access types.
	if n := aboutSnapshots(specs); n < 2*snapshotSpecs {
		t.Errorf("only %d specs about snapshots, restores and clones passed", n)
	}
}

// snapshotSpecs is how many specs csi-sanity 5.6 has about snapshots, restores and clones.
const snapshotSpecs = 23

// aboutSnapshots counts those that ran and passed.
func aboutSnapshots(specs []outcome) int {
	n := 0
	for _, s := range specs {
		name := strings.ToLower(s.Name)
		if s.State == "passed" && (strings.Contains(name, "snapshot") || strings.Contains(name, "source volume")) {
			n++
		}
	}
	return n
}

// runChild runs this test binary again, in a mount namespace of its own, and looks for what it left.
func runChild(t *testing.T, limit time.Duration, run string, env ...string) (string, error) {
	t.Helper()
	before := census(t)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run="+run, "-test.v", "-test.timeout="+limit.String())
	cmd.Env = append(os.Environ(), env...)
	// Go makes every mount private when it unshares the mount namespace, so that nothing mounted there is seen here.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	var out bytes.Buffer
	cmd.Stdout = &out
	if os.Getenv("VMDK_CSI_SANITY_LOG") != "" { // follow it while it runs
		cmd.Stdout = io.MultiWriter(&out, os.Stderr)
	}
	cmd.Stderr = cmd.Stdout
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", cmd.Process.Pid))
	if err != nil {
		t.Error(err)
	}
	err = cmd.Wait()
	left := append(processesIn(namespace), loopsOf(out.String())...)
	for _, left := range append(left, before.leaked(t)...) {
		t.Errorf("left behind: %s", left)
	}
	return out.String(), err
}

func readReport(t *testing.T, path string) []outcome {
	t.Helper()
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []outcome
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var o outcome
		if err := json.Unmarshal(sc.Bytes(), &o); err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	return all
}

// undeclared are the reasons for which a spec may be skipped: the driver does not declare what it tests (health as a node sees it,
// modification and group snapshots), or csi-sanity itself has the spec disabled.
func undeclared(reason string) bool {
	for _, part := range []string{
		"GroupControllerService", "Group Controller", "ModifyVolume", "ControllerModifyVolume", "NodeGetVolumeHealth", "StorageHealth",
		"modify volume", "pending", "mutable",
	} {
		if strings.Contains(strings.ToLower(reason), strings.ToLower(part)) {
			return true
		}
	}
	return false
}

func (o outcome) write(f *os.File) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s\n", b)
	return err
}
