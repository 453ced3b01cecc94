package vmdkctl

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Serve runs `vmdkctl serve --unix` until the test or stop ends it, and returns the URI.
func (r *rig) serve(args ...string) (uri string, stop func()) {
	r.t.Helper()
	dir, err := os.MkdirTemp("", "vmdkctl-nbd") // not t.TempDir: a socket's path has 107 bytes
	if err != nil {
		r.t.Fatal(err)
	}
	socket := dir + "/s"
	cmd := r.command(append([]string{"serve", "--unix", socket}, args...)...)
	var said strings.Builder
	cmd.Stderr = &said
	cmd.Stdout = io.Discard
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		_ = cmd.Process.Signal(unix.SIGTERM)
		if err := cmd.Wait(); err != nil {
			r.t.Errorf("vmdkctl serve: %v\n%s", err, said.String())
		}
		os.RemoveAll(dir)
	}
	r.t.Cleanup(stop)
	for limit := time.Now().Add(20 * time.Second); ; {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return "nbd+unix:///?socket=" + socket, stop
		}
		if time.Now().After(limit) {
			r.t.Fatal("vmdkctl serve does not serve")
		}
	}
}

func TestServeToPeers(t *testing.T) {
	r := newRig(t)
	r.ok("create", "disk.vmdk", "--size", "16M", "--type", "monolithicSparse")
	uri, stop := r.serve("disk.vmdk")
	if out := r.peer("qemu-img", "info", uri); !strings.Contains(out, "16 MiB") {
		t.Errorf("qemu-img info: %s", out)
	}
	r.peer("qemu-io", "-f", "raw", "-c", "write -P 7 1M 3M", "-c", "read -P 7 1M 3M", "-c", "write -z 2M 64k", "-c", "discard 3M 128k",
		"-c", "flush", "-c", "read -P 0 2M 64k", "-c", "read -P 0 3M 128k", uri)
	r.fails(5, "is open in another process", "serve", "--unix", r.path("other"), "disk.vmdk")
	r.peer("nbdcopy", uri, r.path("copy.raw"))
	var info struct {
		Exports []struct {
			Size     int64    `json:"export-size"`
			Contexts []string `json:"contexts"`
		} `json:"exports"`
	}
	if err := json.Unmarshal([]byte(r.peer("nbdinfo", "--json", uri)), &info); err != nil {
		t.Fatal(err)
	}
	if len(info.Exports) != 1 || info.Exports[0].Size != 16<<20 || len(info.Exports[0].Contexts) != 1 {
		t.Errorf("nbdinfo: %+v", info)
	}
	stop()
	r.peer("qemu-img", "check", "disk.vmdk")
	r.same("disk.vmdk", "copy.raw")
}

// Stretch is one line of `nbdinfo --map --json`.
type stretch struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
	Type   int   `json:"type"`
}

func TestServeChangedBlocks(t *testing.T) {
	r := newRig(t)
	r.ok("create", "--datastore", r.dir, "data", "--size", "16M")
	r.ok("snapshot", "--datastore", r.dir, "data", "monday")
	r.ok("snapshot", "--datastore", r.dir, "data", "tuesday")
	uri, _ := r.serve("--datastore", r.dir, "--read-only", "--changed-since", "monday", "data")
	var all []stretch
	if err := json.Unmarshal([]byte(r.peer("nbdinfo", "--map=vmdk:changed:monday", "--json", uri)), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || all[0].Type != 0 || all[0].Length != 16<<20 {
		t.Errorf("nothing was written: %+v", all)
	}
	r.fails(1, "is no point in the past", "serve", "--unix", r.path("s"), "--datastore", r.dir, "--read-only", "--changed-since", "friday", "data")
	r.fails(1, "is a volume of a datastore", "serve", "--unix", r.path("s"), "--datastore", r.dir, "data")
}

func TestServeChangedBlocksOfFiles(t *testing.T) {
	r := newRig(t)
	r.ok("create", "base.vmdk", "--size", "16M", "--type", "monolithicSparse")
	r.peer("qemu-io", "-f", "vmdk", "-c", "write -P 1 0 1M", "base.vmdk")
	r.peer("qemu-img", "create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "head.vmdk")
	r.peer("qemu-io", "-f", "vmdk", "-c", "write -P 2 512k 64k", "-c", "write -P 3 8M 128k", "head.vmdk")
	uri, _ := r.serve("--changed-since", "base.vmdk", "head.vmdk")
	var all []stretch
	if err := json.Unmarshal([]byte(r.peer("nbdinfo", "--map=vmdk:changed:base.vmdk", "--json", uri)), &all); err != nil {
		t.Fatal(err)
	}
	dirty := []stretch{}
	for _, s := range all {
		if s.Type == 1 {
			dirty = append(dirty, s)
		}
	}
	if len(dirty) != 2 || dirty[0] != (stretch{512 << 10, 64 << 10, 1}) || dirty[1] != (stretch{8 << 20, 128 << 10, 1}) {
		t.Errorf("changed: %+v", dirty)
	}
}
