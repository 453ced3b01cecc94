package chain_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// TestEdits: shrink, defragment, rename and rebase of bases and children of every kind leave what the disk reads.
func TestEdits(t *testing.T) {
	chosen := sample(t, len(peerDisks), 5)
	for i, k := range peerDisks {
		if !chosen(i) {
			continue
		}
		for depth := range 2 {
			t.Run(fmt.Sprintf("%s/%d", k.name, depth), func(t *testing.T) {
				d := newDisk(t, seeded(t), k.p)
				for range depth {
					d.open()
					d.steps(8)
					d.close()
					d.addChild(vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse})
				}
				d.open()
				d.steps(20)
				if _, err := d.c.WriteAt(make([]byte, 300<<10), mib); err != nil {
					t.Fatal(err)
				}
				clear(d.want[mib : mib+300<<10])
				d.close()
				head := d.refs[len(d.refs)-1].Name
				same := func(what string) {
					t.Helper()
					d.open()
					d.checkAll()
					d.close()
					d.sound()
					d.qemuReads()
				}
				if _, err := chain.Shrink(t.Context(), d.dir, d.refs, chain.EditParams{Format: k.p.Format}); err != nil && fault.KindOf(err) != fault.Unsupported {
					t.Fatal(err)
				}
				same("shrink")
				if _, err := vmdk.Defragment(t.Context(), d.dir, head, nil); err != nil && fault.KindOf(err) != fault.Unsupported {
					t.Fatal(err)
				}
				same("defragment")
				d.strict("defragmented")
				if depth > 0 {
					if err := chain.Rebase(t.Context(), d.dir, d.refs, nil, chain.RebaseParams{}); err != nil {
						t.Fatal(err)
					}
					d.refs = d.refs[len(d.refs)-1:]
					same("rebase onto nothing")
				}
				if k.p.Type == vmdk.MonolithicFlat {
					return
				}
				if _, err := vmdk.Rename(d.dir, head, "other.vmdk"); err != nil {
					t.Fatal(err)
				}
				d.refs[len(d.refs)-1].Name = "other.vmdk"
				same("rename")
				d.strict("renamed")
				if left, err := filepath.Glob(filepath.Join(d.path, "disk*")); err != nil || depth == 0 && len(left) > 0 {
					t.Errorf("left behind: %v (%v)", left, err)
				}
			})
		}
	}
}

// TestRebase: a child goes from one parent to another of other content, and reads the same; unsafe it reads the new parent.
func TestRebase(t *testing.T) {
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 4*mib + 512})
	d.open()
	d.steps(12)
	d.close()
	d.addChild(vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse})
	d.open()
	d.steps(12)
	d.close()
	if _, err := vmdk.Create(t.Context(), d.dir, "new.vmdk", vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: int64(len(d.want))}); err != nil {
		t.Fatal(err)
	}
	other := bytes.Repeat([]byte{0xee}, len(d.want))
	fill := func(name string) {
		c, err := chain.Open(d.dir, []chain.Ref{{Name: name}}, chain.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.WriteAt(other, 0); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	fill("new.vmdk")
	parents := []chain.Ref{{Name: "new.vmdk"}}
	if err := chain.Rebase(t.Context(), d.dir, d.refs, parents, chain.RebaseParams{}); err != nil {
		t.Fatal(err)
	}
	d.refs[0].Name = "new.vmdk"
	d.open()
	d.checkAll()
	d.close()
	d.qemuReads()
	if _, err := vmdk.Create(t.Context(), d.dir, "small.vmdk", vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: mib}); err != nil {
		t.Fatal(err)
	}
	for _, p := range [][]chain.Ref{{{Name: "small.vmdk"}}, {{Name: d.refs[1].Name}}} {
		if err := chain.Rebase(t.Context(), d.dir, d.refs, p, chain.RebaseParams{}); fault.KindOf(err) != fault.Invalid {
			t.Errorf("onto %v: %v", p, err)
		}
	}
	d.addChild(vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse})
	if err := chain.Rebase(t.Context(), d.dir, d.refs, parents, chain.RebaseParams{Unsafe: true}); err != nil {
		t.Fatal(err)
	}
	d.refs, d.want = []chain.Ref{{Name: "new.vmdk"}, d.refs[2]}, other
	d.open()
	d.checkAll()
	d.close()
}

// TestFixCIDs: a parent that was written under its child no longer fits; an administrator says that it does.
func TestFixCIDs(t *testing.T) {
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: mib})
	d.addChild(vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse})
	c, err := chain.Open(d.dir, d.refs[:1], chain.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteAt(bytes.Repeat([]byte{7}, 512), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := chain.Open(d.dir, d.refs, chain.Options{}); fault.KindOf(err) != fault.Damaged {
		t.Fatalf("a parent that was written: %v", err)
	}
	names := []string{d.refs[0].Name, d.refs[1].Name}
	for _, dry := range []bool{true, false, false} {
		fixed, err := chain.FixCIDs(d.dir, names, dry)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(dry, fixed)
	}
	copy(d.want, bytes.Repeat([]byte{7}, 512))
	d.open()
	d.checkAll()
	d.close()
}

func ctx() context.Context { return context.Background() }

// edits are those of TestEditCrashes, on a disk that editDisk made; each returns what the head is called afterwards.
var edits = map[string]func(d fsx.Dir) error{
	"shrink":     func(d fsx.Dir) error { _, err := chain.Shrink(ctx(), d, editRefs(d), chain.EditParams{}); return err },
	"defragment": func(d fsx.Dir) error { _, err := vmdk.Defragment(ctx(), d, "disk-000001.vmdk", nil); return err },
	"rename":     func(d fsx.Dir) error { _, err := vmdk.Rename(d, "disk.vmdk", "other.vmdk"); return err },
	"rebase": func(d fsx.Dir) error {
		return chain.Rebase(ctx(), d, editRefs(d), []chain.Ref{{Name: "new.vmdk"}}, chain.RebaseParams{})
	},
}

func editRefs(d fsx.Dir) []chain.Ref {
	refs, err := chain.Resolve(d, "disk-000001.vmdk")
	if err != nil {
		return []chain.Ref{{Name: "disk-000001.vmdk"}}
	}
	return refs
}

// editDisk makes a base, a child of it, and another base, and returns what the child reads.
func editDisk(t *testing.T, d fsx.Dir) []byte {
	t.Helper()
	want := make([]byte, 512<<10)
	write := func(refs []chain.Ref, off int, b []byte, keep bool) {
		c, err := chain.Open(d, refs, chain.Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.WriteAt(b, int64(off))
		if err = errors.Join(err, c.Close()); err != nil {
			t.Fatal(err)
		}
		if keep {
			copy(want[off:], b)
		}
	}
	create := func(name string, parent *vmdk.Parent) {
		if _, err := vmdk.Create(ctx(), d, name, vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: int64(len(want)), GrainSectors: 8, Parent: parent}); err != nil {
			t.Fatal(err)
		}
	}
	create("new.vmdk", nil)
	write([]chain.Ref{{Name: "new.vmdk"}}, 0, bytes.Repeat([]byte{9}, 40<<10), false)
	create("disk.vmdk", nil)
	write([]chain.Ref{{Name: "disk.vmdk"}}, 0, bytes.Repeat([]byte{1}, 64<<10), true)
	l, err := vmdk.Open(d, "disk.vmdk", vmdk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	parent := l.AsParent()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	create("disk-000001.vmdk", parent)
	refs := []chain.Ref{{Name: "disk.vmdk"}, {Name: "disk-000001.vmdk"}}
	write(refs, 32<<10, bytes.Repeat([]byte{2}, 64<<10), true)
	write(refs, 48<<10, make([]byte, 16<<10), true)
	write(refs, 8<<10, bytes.Repeat([]byte{3}, 4<<10), true)
	return want
}

// TestEditCrashes: the power fails after every operation of every edit, and every operation fails in turn. The disk reads the same, by
// its head's name, and the edit, repeated, succeeds.
func TestEditCrashes(t *testing.T) {
	for name, edit := range edits {
		t.Run(name, func(t *testing.T) {
			judge := func(d fsx.Dir, want []byte, when string) {
				t.Helper()
				read := func(what string) {
					t.Helper()
					refs, err := chain.Resolve(d, "disk-000001.vmdk")
					if err != nil {
						t.Fatalf("%s: %s: %v", when, what, err)
					}
					c, err := chain.Open(d, refs, chain.Options{ReadOnly: true})
					if err != nil {
						t.Fatalf("%s: %s: %v", when, what, err)
					}
					got := make([]byte, len(want))
					if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
						t.Fatalf("%s: %s: other content (%v)", when, what, err)
					}
					if err := c.Close(); err != nil {
						t.Fatal(err)
					}
				}
				read("before it is repeated")
				if err := edit(d); err != nil && !(name == "rename" && errors.Is(err, syscall.ENOENT)) {
					t.Fatalf("%s: repeated: %v", when, err)
				}
				read("repeated")
				if rep, err := chain.Check(ctx(), d, editRefs(d)); err != nil || !rep.Sound() {
					t.Fatalf("%s: check: %v %v", when, err, rep.Problems)
				}
			}
			fs := sim.New(sim.Options{})
			want := editDisk(t, fs.Root())
			fs.Record()
			if err := edit(fs.Root()); err != nil {
				t.Fatal(err)
			}
			cuts, limit := 0, 4
			if full() {
				limit = 24
			}
			for cut := range fs.Crashes(limit, int64(seeded(t).Uint64())) {
				cuts++
				judge(cut.Root(), want, cut.Cut())
			}
			failures := 0
			for n := 0; ; n++ {
				fs := sim.New(sim.Options{})
				want := editDisk(t, fs.Root())
				fs.Record()
				fs.FailAt(n, syscall.EIO)
				err := edit(fs.Root())
				if n > fs.Ops() {
					break
				}
				fs.Heal()
				if err == nil {
					continue
				}
				failures++
				judge(fs.Survivor().Root(), want, fmt.Sprintf("operation %d failed", n))
			}
			t.Logf("%d states, %d failures", cuts, failures)
			if cuts < 5 || failures < 2 {
				t.Errorf("only %d cuts and %d failures", cuts, failures)
			}
		})
	}
}
