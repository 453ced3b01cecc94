package chain_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// record takes what a manifest would record of the links of the open disk.
func (d *disk) record() {
	d.t.Helper()
	d.refs = d.refs[:0:0]
	for _, l := range d.c.Links() {
		r := chain.Ref{Name: l.Name, Type: l.Descriptor().Type(), Size: l.Size(), Mend: true}
		for _, e := range l.Extents() {
			r.ExtentNames = append(r.ExtentNames, e.Name)
		}
		d.refs = append(d.refs, r)
	}
}

// merge does a merge and what its caller does: it records the links, and removes the files of the one that is gone.
func (d *disk) merge(p chain.MergeParams) error {
	d.t.Helper()
	before := d.c.Links()
	err := d.c.Merge(context.Background(), p)
	d.record()
	if err != nil {
		return err
	}
	gone, cids := before[p.Lower].Info(), before[p.Lower+1].Descriptor().CID()
	if p.Direction == chain.Down {
		gone = before[p.Lower+1].Info()
	}
	if len(d.refs) != len(before)-1 {
		d.t.Fatalf("%d links after a merge of %d", len(d.refs), len(before))
	}
	if got := d.c.Links()[p.Lower].Descriptor().CID(); p.Lower+1 < len(d.refs) && got != cids {
		d.t.Fatalf("the merged link has content ID %s, want %s", got, cids)
	}
	if err := d.dir.Remove(gone.Name); err != nil {
		d.t.Fatal(err)
	}
	for _, e := range gone.Extents {
		if e.Name == gone.Name {
			continue
		}
		if err := d.dir.Remove(e.Name); err != nil {
			d.t.Fatal(err)
		}
	}
	for i, l := range d.c.Links()[:len(d.refs)-1] {
		if l.Unclean() {
			d.t.Fatalf("link %d, %s, is unclean after a merge", i, l.Name)
		}
	}
	return nil
}

// growing makes a chain of snapshots with random content and, between some of them, growth.
func (d *disk) growing(snapshots, steps int, grow bool) {
	d.t.Helper()
	for range snapshots {
		d.steps(steps)
		d.snapshot()
		if grow && d.r.IntN(2) == 0 {
			d.grow()
		}
	}
	d.steps(steps)
	d.record()
}

// TestMerge merges random neighbours of a chain in both directions while the disk is written in between, and compares
// with a model and with what qemu reads, also in the middle.
func TestMerge(t *testing.T) {
	chosen := sample(t, 2*len(peerDisks), 2)
	for i, k := range peerDisks {
		for j, grow := range []bool{false, true} {
			if !chosen(2*i + j) {
				continue
			}
			t.Run(fmt.Sprintf("%s/grow=%v", k.name, grow), func(t *testing.T) {
				d := newDisk(t, seeded(t), k.p)
				pending := &chain.MemoryPending{Max: 20 + d.r.IntN(100)}
				d.o = chain.Options{Direct: d.r.IntN(2) == 0, Pending: pending, Locks: true, Format: k.p.Format}
				d.open()
				d.growing(5, 15, grow)
				for len(d.refs) > 1 {
					d.mergeSome(pending)
				}
				d.close()
				d.sound()
				d.qemuReads()
				d.open()
				d.checkAll()
			})
		}
	}
}

// mergeSome merges one pair, with requests before every other piece, and qemu now and then.
func (d *disk) mergeSome(pending *chain.MemoryPending) {
	d.t.Helper()
	lower := d.r.IntN(len(d.refs) - 1)
	dir := []chain.Direction{chain.Down, chain.Up}[d.r.IntN(2)]
	what := fmt.Sprintf("merge %d of %d %s", lower, len(d.refs), dir)
	n := 0
	err := d.merge(chain.MergeParams{Lower: lower, Direction: dir, Pace: func(context.Context, int64) error {
		if n++; d.r.IntN(2) == 0 {
			d.step()
		}
		if n%8 == 3 {
			if err := d.c.Flush(); err != nil {
				d.t.Fatal(err)
			}
			d.qemuSees(d.refs[len(d.refs)-1].Name, d.want)
		}
		return nil
	}, Commit: func(chain.Identity) error {
		if n := len(pending.Load()); n > 0 {
			d.t.Errorf("%s: %d pending entries at its commit", what, n)
		}
		return nil
	}})
	if err != nil {
		d.t.Fatalf("%s: %v", what, err)
	}
	d.t.Logf("%s: %d pieces", what, n)
	d.checkAll()
	d.steps(5)
	if err := d.c.Flush(); err != nil {
		d.t.Fatal(err)
	}
	d.qemuSees(d.refs[len(d.refs)-1].Name, d.want)
	if d.r.IntN(2) == 0 {
		d.close()
		d.open()
		d.checkAll()
	}
}

// TestMergeCancelled stops merges before every piece in turn; the chain goes on with its old links, clean ones below the
// head, and the next merge does the rest.
func TestMergeCancelled(t *testing.T) {
	total := 0
	defer func() {
		if total < 2 && !t.Failed() {
			t.Errorf("only %d merges were cancelled", total)
		}
	}()
	chosen := sample(t, 6, 2)
	for i, dir := range []chain.Direction{chain.Down, chain.Up} {
		for lower := range 3 {
			if !chosen(3*i + lower) {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", dir, lower), func(t *testing.T) {
				d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 6*mib + 512})
				pending := &chain.MemoryPending{Max: 50}
				d.o = chain.Options{Pending: pending, Locks: true}
				d.open()
				d.growing(3, fewer(30), true)
				stop := errors.New("stop")
				cancelled := 0
				for at := 0; ; at++ {
					n := 0
					links := slices.Clone(d.refs)
					err := d.merge(chain.MergeParams{Lower: lower, Direction: dir, Pace: func(context.Context, int64) error {
						if n == at {
							return stop
						}
						n++
						d.step()
						return nil
					}})
					d.checkAll()
					if err == nil {
						break
					}
					if !errors.Is(err, stop) || len(d.refs) != len(links) {
						t.Fatalf("a merge that is stopped at piece %d: %v", at, err)
					}
					if n := len(pending.Load()); n > 0 && d.c.Links()[lower].Unclean() {
						t.Fatalf("%d entries, and the lower link is unclean", n)
					}
					cancelled++
					d.steps(3)
					if at%8 == 6 {
						d.close()
						d.sound()
						d.open()
						d.checkAll()
					}
					if cancelled > 500 {
						t.Fatal("the merge does not end")
					}
				}
				total += cancelled
				t.Logf("%d cancelled", cancelled)
				d.close()
				d.sound()
				d.qemuSees(d.refs[len(d.refs)-1].Name, d.want)
			})
		}
	}
}

// TestMergeRefused: what a merge is not begun for, and a commit that fails.
func TestMergeRefused(t *testing.T) {
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: 4 * mib})
	d.open()
	d.growing(2, 10, false)
	no := fault.New(fault.InUse, "", "somebody else won")
	for what, c := range map[string]struct {
		p    chain.MergeParams
		want fault.Kind
	}{
		"no upper":     {chain.MergeParams{Lower: 2, Direction: chain.Up}, fault.Invalid},
		"negative":     {chain.MergeParams{Lower: -1, Direction: chain.Up}, fault.Invalid},
		"no direction": {chain.MergeParams{Lower: 0}, fault.Invalid},
		"commit down":  {chain.MergeParams{Lower: 1, Direction: chain.Down, Commit: func(chain.Identity) error { return no }}, fault.InUse},
		"commit up":    {chain.MergeParams{Lower: 0, Direction: chain.Up, Commit: func(chain.Identity) error { return no }}, fault.InUse},
	} {
		if err := d.merge(c.p); fault.KindOf(err) != c.want {
			t.Errorf("%s: %v, want %s", what, err, c.want)
		}
		if len(d.refs) != 3 {
			t.Fatalf("%s: %d links", what, len(d.refs))
		}
		d.steps(5)
	}
	d.close()
	d.sound()
	d.o.ReadOnly = true
	d.open()
	if err := d.c.Merge(t.Context(), chain.MergeParams{Direction: chain.Up}); !errors.Is(err, fault.ReadOnly) {
		t.Errorf("merge of a disk that is open to be read: %v", err)
	}
	d.close()
	d.o.ReadOnly = false
	d.open()
	unknown := fault.New(fault.Poisoned, "", "no answer")
	err := d.c.Merge(t.Context(), chain.MergeParams{Lower: 1, Direction: chain.Down, Commit: func(chain.Identity) error { return unknown }})
	if !errors.Is(err, fault.Poisoned) {
		t.Errorf("unknown outcome: %v", err)
	}
	if err := d.c.Flush(); !errors.Is(err, fault.Poisoned) {
		t.Errorf("flush after an unknown outcome: %v", err)
	}
	if err := d.c.Close(); !errors.Is(err, fault.Poisoned) {
		t.Errorf("close: %v", err)
	}
	d.open()
	d.checkAll()
}

// TestMergeZeroedGrains: grains that a link has as zeros, which qemu makes, hide what is below them, also after they were
// moved, and also where requests give grains up meanwhile.
func TestMergeZeroedGrains(t *testing.T) {
	chosen := sample(t, 6, 3)
	for i, k := range []struct {
		lower int
		dir   chain.Direction
	}{{0, chain.Down}, {0, chain.Up}, {1, chain.Down}, {1, chain.Up}, {2, chain.Down}, {2, chain.Up}} {
		if !chosen(i) {
			continue
		}
		t.Run(fmt.Sprintf("%d/%s", k.lower, k.dir), func(t *testing.T) {
			d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 4*mib + 512})
			d.o = chain.Options{Pending: &chain.MemoryPending{Max: 40}, Locks: true}
			d.open()
			d.write(0, fillOf(4*mib+512, 0x11))
			d.close()
			d.qemuZeroes("disk-000001.vmdk", mib, mib)
			d.qemuZeroes("disk-000002.vmdk", 2*mib, mib) // the head, with zeroed grains of its own
			d.open()
			if k.lower == 2 {
				d.snapshot()
			}
			d.write(mib, fillOf(256<<10, 0x22))
			d.write(2*mib+512, fillOf(512, 0x33))
			d.record()
			n := int64(0)
			err := d.merge(chain.MergeParams{Lower: k.lower, Direction: k.dir, Pace: func(context.Context, int64) error {
				for _, off := range []int64{mib, mib + 128<<10, mib + 512<<10, 2 * mib, 3 * mib} {
					off += n * 65536
					if err := d.c.Discard(off, 65536); err != nil {
						t.Fatal(err)
					}
					clear(d.want[off : off+65536])
				}
				d.write(2*mib+512*1024+n*65536+100, fillOf(100, 0x44))
				n++
				d.checkAll()
				return nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			d.checkAll()
			d.steps(10)
			d.close()
			d.sound()
			d.qemuSees(d.refs[len(d.refs)-1].Name, d.want)
		})
	}
}

func (d *disk) write(off int64, b []byte) {
	d.t.Helper()
	if _, err := d.c.WriteAt(b, off); err != nil {
		d.t.Fatal(err)
	}
	copy(d.want[off:], b)
}

// qemuZeroes lets qemu put a child on top that has a range as zeroed grains.
func (d *disk) qemuZeroes(name string, off, n int64) {
	d.t.Helper()
	path := filepath.Join(d.path, name)
	tool(d.t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicSparse,zeroed_grain=on", "-F", "vmdk",
		"-b", d.refs[len(d.refs)-1].Name, path)
	tool(d.t, "qemu-io", "-f", "vmdk", "-c", fmt.Sprintf("write -z %d %d", off, n), path)
	clear(d.want[off : off+n])
	d.refs = append(d.refs, chain.Ref{Name: name})
}
