package sanity

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// found is what could leak, by a text that names it.
type found map[string]bool

// census of what is there that could be ours: mounts of disks in this process's namespace, and this process's
// descriptors.
func census(t *testing.T) found {
	t.Helper()
	f := found{}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.HasPrefix(line, "/dev/loop") || strings.HasPrefix(line, "vmdk-csi") {
			f["mount "+strings.TrimSpace(line)] = true
		}
	}
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range fds {
		to, _ := os.Readlink(fd)
		if strings.HasPrefix(to, "/memfd:") || strings.HasPrefix(to, "/dev/fuse") || strings.HasPrefix(to, "/dev/loop") {
			f["descriptor of "+to] = true
		}
	}
	return f
}

// leaked is what is there and was not before; the kernel takes a moment for some of it.
func (f found) leaked(t *testing.T) []string {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		var left []string
		for _, name := range slices.Sorted(maps.Keys(census(t))) {
			if !f[name] {
				left = append(left, name)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(50 * time.Millisecond) // a poll with a deadline
	}
}

// loopsOf are the loop devices that are left of disks which the output of a run names; the machine may have others.
func loopsOf(output string) []string {
	deadline := time.Now().Add(10 * time.Second)
	for {
		var left []string
		backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		for _, p := range backing {
			b, err := os.ReadFile(p)
			id, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(string(b)), "/"), "@")
			if err == nil && host.ValidDiskID(id) && strings.Contains(output, id) {
				left = append(left, filepath.Base(filepath.Dir(filepath.Dir(p)))+" of disk "+id)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(50 * time.Millisecond) // a poll with a deadline
	}
}

// processesIn are the processes that are left in a mount namespace, which is how a child's descendants are known.
// Names are looked at first: a link in /proc waits for a process that is stuck in the kernel.
func processesIn(namespace string) []string {
	deadline := time.Now().Add(10 * time.Second)
	for {
		var left []string
		comms, _ := filepath.Glob("/proc/[0-9]*/comm")
		for _, p := range comms {
			b, err := os.ReadFile(p)
			name := strings.TrimSpace(string(b))
			if err != nil || !strings.HasPrefix(name, "vmdk-") && !strings.HasPrefix(name, "memfd:") &&
				!strings.HasPrefix(name, "kube-") && name != "etcd" {
				continue
			}
			if ns, _ := os.Readlink(filepath.Join(filepath.Dir(p), "ns", "mnt")); ns == namespace {
				left = append(left, "process "+filepath.Base(filepath.Dir(p))+" "+name)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(50 * time.Millisecond) // a poll with a deadline
	}
}
