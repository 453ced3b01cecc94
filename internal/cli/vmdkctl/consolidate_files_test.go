package vmdkctl

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestConsolidateFiles: a chain of plain files becomes one link, link by link, and what another child needs stays.
func TestConsolidateFiles(t *testing.T) {
	r := newRig(t)
	r.rawOf("a.raw", 8<<20)
	r.ok("convert", "--to", "monolithicFlat", "a.raw", "a.vmdk")
	last := "a.vmdk"
	for i, kind := range []string{"twoGbMaxExtentSparse", "monolithicSparse", "vmfsSparse", "twoGbMaxExtentSparse"} {
		next := fmt.Sprintf("a-%06d.vmdk", i+1)
		r.ok("snapshot", last, next, "--type", kind)
		if res := r.piped([]byte(strings.Repeat(kind, 10)), "write", next, "--offset", fmt.Sprintf("%dM", i+2)); res.code != 0 {
			t.Fatal(res.err)
		}
		last = next
	}
	sum := r.sum(last)
	r.fails(2, "cannot be of type", "snapshot", last, "x.vmdk", "--type", "monolithicFlat")
	r.fails(1, "no direction", "consolidate", last, "--direction", "sideways")
	r.fails(1, "no link above another", "consolidate", last, "--link", "a.vmdk")

	var plan consolidated
	r.json(&plan, "consolidate", last, "--dry-run")
	if len(plan.Plan) != 4 || plan.Merged != 0 || plan.Links != 5 {
		t.Fatalf("%+v", plan)
	}
	if out := r.ok("consolidate", last, "--link", "a-000002.vmdk", "--direction", "up"); !strings.Contains(out, "1 link merged") {
		t.Error(out)
	}
	r.ok("snapshot", "a-000002.vmdk", "other.vmdk") // a second child: what is below it stays as it is
	other := r.sum("other.vmdk")
	var done consolidated
	r.json(&done, "consolidate", last)
	if done.Merged != 2 || done.Links != 2 || done.Waits == "" || done.Head == "" {
		t.Fatalf("%+v", done)
	}
	if got := r.sum(done.Head); got != sum {
		t.Error("other content")
	}
	if got := r.sum("other.vmdk"); got != other {
		t.Error("the other child has other content")
	}
	r.ok("delete", "other.vmdk")
	r.json(&done, "consolidate", done.Head)
	if done.Links != 1 || r.sum(done.Head) != sum {
		t.Fatalf("%+v", done)
	}
	r.ok("check", done.Head)
	files, err := filepath.Glob(filepath.Join(r.dir, "a*.vmdk"))
	if err != nil || len(files) > 2 {
		t.Errorf("left: %v (%v)", files, err)
	}
}

// TestDepth: 32 links, more when it is asked for, 64 at most.
func TestDepth(t *testing.T) {
	r := newRig(t)
	r.ok("create", "a.vmdk", "--size", "1M")
	last := "a.vmdk"
	grow := func(to int, force ...string) {
		t.Helper()
		var c chainInfo
		for r.json(&c, "chain", last); len(c.Links) < to; r.json(&c, "chain", last) {
			next := fmt.Sprintf("a-%06d.vmdk", len(c.Links))
			r.ok(append([]string{"snapshot", last, next}, force...)...)
			last, c = next, chainInfo{}
		}
	}
	grow(32)
	r.ok("check", last)
	r.fails(1, "32 links already", "snapshot", last, "more.vmdk")
	grow(33, "--force")
	if res := r.run("check", last); res.code != 4 || !strings.Contains(res.out, "33 links") {
		t.Errorf("exit %d: %s%s", res.code, res.out, res.err)
	}
	grow(64, "--force")
	r.fails(1, "64 links already", "snapshot", last, "more.vmdk", "--force")
	r.ok("consolidate", last, "--link", "a-000040.vmdk")
	r.ok("snapshot", last, "more.vmdk", "--force")
	if _, err := os.Stat(filepath.Join(r.dir, "more.vmdk")); err != nil {
		t.Error(err)
	}
}
