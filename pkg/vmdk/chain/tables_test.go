package chain_test

import (
	"context"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// dropTables makes the directories of a sparse extent empty, as foreign writers leave them.
func dropTables(t *testing.T, d fsx.Dir, name string) {
	t.Helper()
	f, err := d.Open(name, fsx.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, vmdk.SectorSize)
	if _, err := f.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{48, 56} { // rgdOffset, gdOffset
		sector := int64(binary.LittleEndian.Uint64(head[at:]))
		if _, err := f.WriteAt(make([]byte, vmdk.SectorSize), sector*vmdk.SectorSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Datasync(); err != nil {
		t.Fatal(err)
	}
}

// The datastore is full at one operation of the first write into an extent without grain tables. The write that is
// repeated when there is room must be there after the disk was closed.
func TestFullWhileATableIsMade(t *testing.T) {
	refs := []chain.Ref{{Name: "disk.vmdk"}}
	failed, done := 0, false
	for n := 0; !done; n++ {
		fs := sim.New(sim.Options{})
		d := fs.Root()
		p := vmdk.CreateParams{Capacity: 64 << 20, Type: vmdk.TwoGbMaxExtentSparse}
		if _, err := vmdk.Create(context.Background(), d, "disk.vmdk", p); err != nil {
			t.Fatal(err)
		}
		dropTables(t, d, "disk-s001.vmdk")
		c, err := chain.Open(d, refs, chain.Options{})
		if err != nil {
			t.Fatal(err)
		}
		fs.Record()
		fs.FailAt(n, fault.New(fault.NoSpace, "", "full: %w", unix.ENOSPC))
		if _, err := c.WriteAt([]byte{7}, 0); err != nil {
			failed++
		}
		done = fs.Ops() < n
		fs.Heal()
		if _, err := c.WriteAt([]byte{7}, 0); err != nil {
			if err := c.Abandon(); err != nil { // poisoned: it was a sync that failed
				t.Fatal(err)
			}
			continue
		}
		if err := c.Close(); err != nil {
			t.Fatalf("full at operation %d: %v", n, err)
		}
		if c, err = chain.Open(d, refs, chain.Options{ReadOnly: true}); err != nil {
			t.Fatalf("full at operation %d: %v", n, err)
		}
		var b [1]byte
		if _, err := c.ReadAt(b[:], 0); err != nil || b[0] != 7 {
			t.Errorf("full at operation %d: the repeated write reads %d, %v", n, b[0], err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if failed < 5 {
		t.Fatalf("only %d operations were there to fail", failed)
	}
}

// TestManyTables: a disk with more tables than stay in memory is written and read, and what was put aside is found again.
func TestManyTables(t *testing.T) {
	const per, tables = 512 * 4096, 4096 + 200 // bytes that a table maps; 4096 stay
	d := sim.New(sim.Options{}).Root()
	if _, err := vmdk.Create(t.Context(), d, "disk.vmdk", vmdk.CreateParams{Capacity: tables * per, Type: vmdk.MonolithicSparse, GrainSectors: 8}); err != nil {
		t.Fatal(err)
	}
	mark := func(i int64) byte { return byte(i%251 + 1) }
	refs := []chain.Ref{{Name: "disk.vmdk"}}
	c, err := chain.Open(d, refs, chain.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for round := range int64(2) { // the second round meets tables that were put aside
		for i := range int64(tables) {
			if _, err := c.WriteAt([]byte{mark(i + round)}, i*per+round*8192); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func() {
		t.Helper()
		for round := range int64(2) {
			for i := range int64(tables) {
				var b [1]byte
				if _, err := c.ReadAt(b[:], i*per+round*8192); err != nil || b[0] != mark(i+round) {
					t.Fatalf("table %d reads %d (%v)", i, b[0], err)
				}
			}
		}
	}
	check()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err = chain.Open(d, refs, chain.Options{ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	check()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}
