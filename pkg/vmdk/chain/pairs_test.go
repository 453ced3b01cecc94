package chain_test

import (
	"context"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

var childTypes = []vmdk.Type{vmdk.MonolithicSparse, vmdk.TwoGbMaxExtentSparse, vmdk.VMFSSparse}

// TestPairs: each kind of base has a child of each kind, made when the disk is closed and when it is in use; both are
// written, read by qemu, and made one again, in both directions.
func TestPairs(t *testing.T) {
	all := vmdk.Creatable()
	chosen := sample(t, len(all)*len(childTypes), 3)
	for i, base := range all {
		for j, child := range childTypes {
			if !chosen(i*len(childTypes) + j) {
				continue
			}
			t.Run(string(base)+"/"+string(child), func(t *testing.T) {
				d := newDisk(t, seeded(t), vmdk.CreateParams{Type: base, Capacity: 3*mib + 7*512})
				d.o = chain.Options{Direct: d.r.IntN(2) == 0, Locks: true, Pending: &chain.MemoryPending{Max: 500}}
				d.open()
				d.steps(12)
				d.close()
				d.addChild(vmdk.CreateParams{Type: child, ExtentSize: mib})
				d.round(16)
				d.open()
				name := d.childName()
				if err := d.c.Snapshot(context.Background(), chain.SnapshotParams{Child: name, Type: child, ExtentSize: 2 * mib}); err != nil {
					t.Fatal(err)
				}
				d.steps(12)
				d.record()
				if err := d.c.Flush(); err != nil {
					t.Fatal(err)
				}
				d.qemuSees(name, d.want)
				for _, dir := range []chain.Direction{chain.Up, chain.Down} {
					if err := d.merge(chain.MergeParams{Lower: d.r.IntN(len(d.refs) - 1), Direction: dir}); err != nil {
						t.Fatalf("merge %s: %v", dir, err)
					}
					d.steps(6)
				}
				d.close()
				d.sound()
				d.qemuReads()
			})
		}
	}
}
