package chain_test

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// TestEdits: shrink, defragment, rename and rebase of bases and children of every kind leave what the disk reads.
func TestEdits(t *testing.T) {
	chosen := sample(t, len(peerDisks), 3)
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
