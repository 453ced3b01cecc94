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
	before := census(t)
	// Go makes every mount private when it unshares the mount namespace, so that nothing mounted there is seen here.
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestSanity$", "-test.timeout=15m")
	cmd.Env = append(os.Environ(), envBackend+"="+name, envReport+"="+report, "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	var buf bytes.Buffer
	cmd.Stdout = &buf
	if testing.Verbose() && os.Getenv("VMDK_CSI_SANITY_LOG") != "" { // follow it while it runs
		cmd.Stdout = io.MultiWriter(&buf, os.Stderr)
	}
	cmd.Stderr = cmd.Stdout
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
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
		t.Logf("%s", buf.String())
	}
	if err != nil && !t.Failed() {
		t.Errorf("backend %s: %v", name, err)
	}
	if len(specs) < 50 {
		t.Errorf("only %d specs ran", len(specs))
	}
	if left := before.leaked(t); left != "" {
		t.Errorf("left behind by backend %s:\n%s", name, left)
	}
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

// undeclared are the reasons for which a spec may be skipped: the driver does not declare what it tests (snapshots, clones,
// health and modification come with later versions of the driver), or csi-sanity itself has the spec disabled.
func undeclared(reason string) bool {
	for _, part := range []string{
		"GroupControllerService", "Group Controller", "CreateSnapshot not supported", "DeleteSnapshot not supported", "ListSnapshots not supported", "Snapshot not supported",
		"GetSnapshot not supported", "Volume Cloning not supported", "ModifyVolume", "ControllerModifyVolume", "VolumeHealth", "StorageHealth",
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
