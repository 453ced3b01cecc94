package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// world is what a suite could leave behind, by a name that stays the same while it lives.
type world map[string]bool

// scope is whose processes are looked at. While the kind cluster is up its processes come and go in the pid namespaces of its
// nodes; what runs beside it is in our own.
type scope bool

const (
	ownNamespace scope = false
	everywhere   scope = true
)

// observe lists loop devices in use, mounts of ours and processes of ours. It reads /sys and /proc only: losetup would
// hang on a dead FUSE server.
func observe(s scope) world {
	w := world{}
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil {
			w["loop device "+strings.Split(f, "/")[3]+" over "+strings.TrimSpace(string(b))] = true
		}
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for _, l := range strings.Split(string(b), "\n") {
			if f := strings.Fields(l); len(f) > 4 && (strings.Contains(l, "vmdk") || strings.Contains(f[4], "/kubelet/")) {
				w["mount "+f[4]] = true
			}
		}
	}
	own, _ := os.Readlink("/proc/self/ns/pid")
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		if ns, err := os.Readlink(p + "/ns/pid"); s == ownNamespace && err == nil && ns != own {
			continue
		}
		exe, err := os.Readlink(p + "/exe")
		if err != nil {
			continue
		}
		base := strings.TrimSuffix(filepath.Base(exe), " (deleted)")
		if strings.HasPrefix(base, "vmdk") || base == "kube-apiserver" || base == "etcd" || base == "fio" {
			w[fmt.Sprintf("process %s %s", filepath.Base(p), exe)] = true
		}
	}
	return w
}

// settling is how long what ends by itself may take.
var settling = 15 * time.Second

// leaked is what is there now and was not before; what ends by itself (a loop device being cleared, a process being
// reaped) is given some seconds.
func (before world) leaked(ctx context.Context, s scope) []string {
	var out []string
	for deadline := time.Now().Add(settling); ; {
		out = out[:0]
		for k := range observe(s) {
			if !before[k] {
				out = append(out, "left behind: "+k)
			}
		}
		if len(out) == 0 || time.Now().After(deadline) || ctx.Err() != nil {
			return out
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
