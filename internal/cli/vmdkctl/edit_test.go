package vmdkctl

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

func (r *rig) sum(disk string) string {
	r.t.Helper()
	var c checksum
	r.json(&c, "checksum", disk)
	return c.Sum
}

// TestEditCommands: what each command is for, on a disk and its child; what is read stays the same where it should.
func TestEditCommands(t *testing.T) {
	r := newRig(t)
	want := r.rawOf("a.raw", 8<<20)
	r.ok("convert", "--to", "twoGbMaxExtentSparse", "a.raw", "a.vmdk")
	sum := sha256.Sum256(want)
	if got := r.sum("a.vmdk"); got != hex.EncodeToString(sum[:]) {
		t.Fatalf("checksum %s, want %x", got, sum)
	}
	if got := r.ok("read", "a.vmdk", "--offset", "1M", "--length", "4K"); got != string(want[1<<20:1<<20+4<<10]) {
		t.Error("read: other bytes")
	}
	r.fails(1, "not inside", "read", "a.vmdk", "--offset", "8M", "--length", "1")

	r.ok("snapshot", "a.vmdk", "a-000001.vmdk")
	if res := r.piped([]byte("hello"), "write", "a-000001.vmdk", "--offset", "3M"); res.code != 0 {
		t.Fatal(res.err)
	}
	copy(want[3<<20:], "hello")
	same := func(disk string) {
		t.Helper()
		sum := sha256.Sum256(want)
		if got := r.sum(disk); got != hex.EncodeToString(sum[:]) {
			t.Fatalf("%s: other content", disk)
		}
	}
	same("a-000001.vmdk")
	r.fails(1, "is the parent of a-000001.vmdk", "delete", "a.vmdk")
	r.fails(1, "has a parent", "grow", "a-000001.vmdk", "16M")

	r.ok("rename", "a.vmdk", "b.vmdk")
	same("a-000001.vmdk")
	r.ok("shrink", "a-000001.vmdk")
	r.ok("defragment", "a-000001.vmdk")
	same("a-000001.vmdk")
	r.ok("create", "other.vmdk", "--size", "8M", "--type", "0")
	r.ok("rebase", "a-000001.vmdk", "--parent", "other.vmdk")
	same("a-000001.vmdk")
	r.peer("qemu-img", "check", "-f", "vmdk", "a-000001.vmdk")
	r.ok("rebase", "a-000001.vmdk", "--no-parent")
	r.ok("delete", "other.vmdk")
	same("a-000001.vmdk")
	r.ok("grow", "a-000001.vmdk", "16M")
	want = append(want, make([]byte, 8<<20)...)
	same("a-000001.vmdk")
	r.fails(1, "already", "grow", "a-000001.vmdk", "16M")

	r.ok("create", "base.vmdk", "--size", "8M", "--type", "1")
	r.ok("snapshot", "base.vmdk", "base-000001.vmdk")
	if res := r.piped([]byte("under the child"), "write", "base.vmdk"); res.code != 0 {
		t.Fatal(res.err)
	}
	r.fails(3, "content ID", "read", "base-000001.vmdk", "--length", "5")
	if out := r.ok("fix-cid", "base-000001.vmdk", "--dry-run"); !strings.Contains(out, "would be changed") {
		t.Errorf("fix-cid --dry-run: %q", out)
	}
	r.ok("fix-cid", "base-000001.vmdk")
	if got := r.ok("read", "base-000001.vmdk", "--length", "5"); got != "under" {
		t.Errorf("after fix-cid: %q", got)
	}
	r.ok("delete", "base-000001.vmdk")
	r.ok("delete", "base.vmdk")
	for _, f := range r.files() {
		if strings.HasPrefix(f, "base") || strings.HasPrefix(f, "other") || strings.HasPrefix(f, ".") {
			t.Errorf("left behind: %s", f)
		}
	}
}

// TestNumberedTypes: the numbers of vmware-vdiskmanager make what it makes.
func TestNumberedTypes(t *testing.T) {
	r := newRig(t)
	r.rawOf("a.raw", 4<<20)
	for n, want := range numberedTypes {
		disk := "n" + string(rune('0'+n)) + ".vmdk"
		r.ok("convert", "a.raw", disk, "--type", string(rune('0'+n)))
		r.same("a.raw", disk)
		if q := r.qemuInfo(disk); q.Specific.Data.Type != string(want.typ) {
			t.Errorf("%d: createType %s, want %s", n, q.Specific.Data.Type, want.typ)
		}
	}
	r.fails(2, "unknown type", "convert", "a.raw", "x.vmdk", "--type", "7")
	if _, err := os.Stat(r.path("x.vmdk")); err == nil {
		t.Error("x.vmdk was made")
	}
}
