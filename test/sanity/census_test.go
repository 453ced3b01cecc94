package sanity

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// found is what could leak, by a text that names it.
type found map[string]bool

// census of what is there on the whole machine that could be ours: attached loop devices of disks, mounts that come from
// them, and the descriptors and programs of processes.
func census(t *testing.T) found {
	t.Helper()
	f := found{}
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, p := range backing {
		if b, err := os.ReadFile(p); err == nil && strings.HasPrefix(string(b), "/vd-") {
			f["loop device "+filepath.Base(filepath.Dir(filepath.Dir(p)))+" "+strings.TrimSpace(string(b))] = true
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.HasPrefix(line, "/dev/loop") || strings.HasPrefix(line, "vmdk-csi") {
			f["mount "+strings.TrimSpace(line)] = true
		}
	}
	// Names only: /proc/PID/exe and cmdline wait for a process that is stuck in the kernel, which would be the leak.
	comms, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, p := range comms {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		name := strings.TrimSpace(string(b))
		if strings.HasPrefix(name, "vmdk-") || name == "sanity.test" && !strings.Contains(p, fmt.Sprintf("/%d/", os.Getpid())) {
			f["process "+filepath.Base(filepath.Dir(p))+" "+name] = true
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
func (f found) leaked(t *testing.T) string {
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
			return strings.Join(left, "\n")
		}
		time.Sleep(50 * time.Millisecond) // a poll with a deadline
	}
}
