package vmdkctl

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// state is every file below a directory with what it holds.
func state(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		p, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %x\n", path, sha256.Sum256(p))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestEveryCommand walks the command tree: each has an example and its words can be completed, and each that changes a disk has
// --dry-run, with which it changes nothing and says something.
func TestEveryCommand(t *testing.T) {
	looks := []string{"chain", "check", "checksum", "diff", "info", "map", "read", "snapshots", "list", "serve", "version", "completion", "help", "docs", "transports"}
	try := map[string][]string{
		"create": {"new.vmdk", "--size", "1M"}, "convert": {"disk.vmdk", "new.vmdk", "--to", "monolithicSparse"}, "defragment": {"disk-000001.vmdk"},
		"fix-cid": {"disk-000001.vmdk"}, "grow": {"other.vmdk", "16M"}, "rebase": {"disk-000001.vmdk", "--no-parent"},
		"rename": {"disk.vmdk", "new.vmdk"}, "repair": {"disk.vmdk"}, "shrink": {"disk.vmdk"}, "write": {"disk-000001.vmdk"},
		"clone": {"disk.vmdk", "new.vmdk", "--mode", "full"}, "consolidate": {"disk-000001.vmdk"}, "delete": {"other.vmdk"},
		"flatten": {"disk-000001.vmdk", "new.vmdk"}, "snapshot": {"disk-000001.vmdk", "new.vmdk"}, "attach": {"disk.vmdk"},
	}
	elsewhere := []string{"detach", "restore", "lun"} // need what is not here, or have subcommands of their own; their own tests try them
	r := newRig(t)
	r.rawOf("a.raw", 8<<20)
	r.ok("convert", "--to", "twoGbMaxExtentSparse", "a.raw", "disk.vmdk")
	r.ok("create", "other.vmdk", "--size", "8M")
	r.ok("snapshot", "disk.vmdk", "disk-000001.vmdk")
	if res := r.piped([]byte("content"), "write", "disk-000001.vmdk"); res.code != 0 {
		t.Fatal(res.err)
	}
	root := (&app{out: io.Discard, err: io.Discard, format: "table"}).command()
	root.InitDefaultCompletionCmd()
	tried := 0
	for _, c := range root.Commands() {
		name := c.Name()
		if c.Hidden || slices.Contains(looks, name) || slices.Contains(elsewhere, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			if c.Flags().Lookup("dry-run") == nil || c.Example == "" {
				t.Fatalf("no --dry-run, or no example")
			}
			if c.ValidArgsFunction == nil && name != "create" && name != "convert" { // theirs are any files
				t.Error("its arguments are not completed")
			}
			args, ok := try[name]
			if !ok {
				t.Fatal("it is not tried here")
			}
			before := state(t, r.dir)
			res := r.piped([]byte("other bytes"), append([]string{name, "--dry-run"}, args...)...)
			if res.code != 0 || strings.TrimSpace(res.out) == "" {
				t.Errorf("exit code %d, %q, %s", res.code, res.out, res.err)
			}
			if after := state(t, r.dir); after != before {
				t.Errorf("it changed something:\n%s\nwas\n%s", after, before)
			}
			for _, format := range []string{"json", "yaml"} {
				if res := r.piped([]byte("x"), append([]string{name, "--dry-run", "-o", format}, args...)...); res.code != 0 || len(res.out) < 3 {
					t.Errorf("-o %s: exit code %d, %q", format, res.code, res.out)
				}
			}
			tried++
		})
	}
	if tried != len(try) {
		t.Errorf("%d commands were tried, %d are known", tried, len(try))
	}
	for _, name := range looks[:7] {
		c, _, err := root.Find([]string{name})
		if err != nil || c.Flags().Lookup("dry-run") != nil || c.ValidArgsFunction == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestIgnoreCID: a parent that was written under its child is read only by who says so.
func TestIgnoreCID(t *testing.T) {
	r := newRig(t)
	want := r.rawOf("a.raw", 4<<20)
	r.ok("convert", "--to", "monolithicFlat", "a.raw", "disk.vmdk")
	r.ok("snapshot", "disk.vmdk", "disk-000001.vmdk")
	if res := r.piped([]byte("late"), "write", "disk.vmdk"); res.code != 0 {
		t.Fatal(res.err)
	}
	copy(want, "late")
	r.fails(3, "was modified", "read", "disk-000001.vmdk")
	r.fails(3, "was modified", "convert", "disk-000001.vmdk", "b.raw")
	if got := r.ok("read", "disk-000001.vmdk", "--ignore-cid"); !bytes.Equal([]byte(got), want) {
		t.Error("other content")
	}
	r.ok("convert", "disk-000001.vmdk", "b.raw", "--ignore-cid")
	if res := r.piped([]byte("x"), "write", "disk-000001.vmdk", "--ignore-cid"); res.code == 0 {
		t.Error("it was written")
	}
}

// TestCloneFiles: a linked clone is a child, a full one a copy.
func TestCloneFiles(t *testing.T) {
	r := newRig(t)
	r.rawOf("a.raw", 4<<20)
	r.ok("convert", "--to", "monolithicFlat", "a.raw", "disk.vmdk")
	r.ok("clone", "disk.vmdk", "linked.vmdk")
	r.ok("clone", "disk.vmdk", "full.vmdk", "--mode", "full", "--type", "monolithicSparse")
	sum := r.sum("disk.vmdk")
	if r.sum("linked.vmdk") != sum || r.sum("full.vmdk") != sum {
		t.Error("other content")
	}
	var c chainInfo
	if r.json(&c, "chain", "linked.vmdk"); len(c.Links) != 2 {
		t.Errorf("%d links", len(c.Links))
	}
	r.fails(1, "has the size of", "clone", "disk.vmdk", "more.vmdk", "--size", "8M")
}
