package chain_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// change is a write of fill (0: zeros) that began; flushed says that everything before it is promised; size and grown
// the same for growth.
type change struct {
	off, n  int64
	fill    byte
	flushed bool
	size    int64
	grown   bool
	open    bool // the disk is opened, everything before is flushed, and its content ID is cid
	cid     vmdk.CID
}

type crashCase struct {
	name  string
	p     vmdk.CreateParams
	child bool
	ops   int
}

var crashCases = []crashCase{
	{"flat", vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: 96 << 10}, false, 10},
	{"sparse", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 96<<10 + 512, GrainSectors: 8}, false, 16},
	{"embedded", vmdk.CreateParams{Type: vmdk.MonolithicSparse, Capacity: 96 << 10, GrainSectors: 8}, false, 12},
	{"split", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 1<<20 + 64<<10, ExtentSize: 1 << 20, GrainSectors: 16}, false, 12},
	{"child", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 96 << 10, GrainSectors: 8}, true, 16},
	{"cowd", vmdk.CreateParams{Type: vmdk.VMFSSparse, Capacity: 96<<10 + 512, GrainSectors: 1}, false, 16},
	{"cowd child", vmdk.CreateParams{Type: vmdk.VMFSSparse, Capacity: 96 << 10, GrainSectors: 4}, true, 16},
}

// TestPowerLoss cuts the power at every operation of a random sequence, in many ways each, and then demands: the disk
// opens, every sector has its last flushed content or a later one, and the structure is sound.
func TestPowerLoss(t *testing.T) {
	chosen := sample(t, len(crashCases), 2)
	for i, k := range crashCases {
		if !chosen(i) {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			r := seeded(t)
			n := 0
			rounds := 4
			if k.p.Capacity >= 1<<20 || k.child {
				rounds = 2
			}
			if raceDetector {
				rounds = 1
			}
			for range rounds {
				fs, refs := crashDisk(t, k)
				fs.Record()
				if err := crashRun(r, fs.Root(), &journal{FS: fs}, refs, k); err != nil {
					t.Fatal(err)
				}
				for cut := range fs.Crashes(16, r.Int64()) {
					n++
					if err := crashVerify(cut, cut.Events(), refs, k); err != nil {
						t.Fatalf("%s: %v\nafter %+v", cut.Cut(), err, cut.Events())
					}
				}
			}
			if n < 30*rounds {
				t.Fatalf("only %d crashes were tried", n)
			}
			t.Logf("%d crashes", n)
		})
	}
}

func crashDisk(t *testing.T, k crashCase) (*sim.FS, []chain.Ref) {
	t.Helper()
	fs := sim.New(sim.Options{})
	d := fs.Root()
	if _, err := vmdk.Create(context.Background(), d, "disk.vmdk", k.p); err != nil {
		t.Fatal(err)
	}
	refs := []chain.Ref{{Name: "disk.vmdk"}}
	if !k.child {
		return fs, refs
	}
	c, err := chain.Open(d, refs, chain.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < k.p.Capacity; off += 10 << 10 {
		if _, err := c.WriteAt(fillOf(4096, 0xee), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := vmdk.Open(d, "disk.vmdk", vmdk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := k.p
	p.Parent = l.AsParent()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := vmdk.Create(context.Background(), d, "disk-000001.vmdk", p); err != nil {
		t.Fatal(err)
	}
	return fs, append(refs, chain.Ref{Name: "disk-000001.vmdk"})
}

// journal keeps what began and what was promised, also where no power is lost.
type journal struct {
	*sim.FS
	events []any
}

func (j *journal) Begin(e any) {
	j.events = append(j.events, e)
	j.FS.Begin(e)
}

func (j *journal) Mark(e any) {
	j.events = append(j.events, e)
	j.FS.Mark(e)
}

// crashRun does k.ops random operations on sectors or small runs of them, and a clean close in the middle and at the end.
// It stops at the first error, with the disk closed.
func crashRun(r *rand.Rand, d fsx.Dir, fs *journal, refs []chain.Ref, k crashCase) error {
	open := func(o chain.Options) (*chain.Chain, error) {
		c, err := chain.Open(d, refs, o)
		if err == nil {
			fs.Begin(change{open: true, cid: headCID(c)})
		}
		return c, err
	}
	c, err := open(chain.Options{Pending: &chain.MemoryPending{Max: 24}})
	if err != nil {
		return err
	}
	for i := range k.ops {
		if err := crashStep(r, c, fs, k, byte(i%250+1)); err != nil {
			return errors.Join(err, c.Abandon())
		}
		if i == k.ops/2 {
			if err := c.Close(); err != nil {
				return err
			}
			fs.Mark(change{flushed: true})
			if c, err = open(chain.Options{}); err != nil {
				return err
			}
		}
	}
	if err := c.Close(); err != nil {
		return err
	}
	fs.Mark(change{flushed: true})
	return nil
}

func crashStep(r *rand.Rand, c *chain.Chain, fs *journal, k crashCase, fill byte) error {
	size := c.Size()
	n := (r.Int64N(12) + 1) * 512
	off := r.Int64N((size-n)/512+1) * 512
	if r.IntN(2) == 0 {
		off = off / 8192 * 8192 // come back to the same grains
	}
	switch x := r.IntN(10); {
	case x < 5:
		fs.Begin(change{off: off, n: n, fill: fill})
		_, err := c.WriteAt(fillOf(int(n), fill), off)
		return err
	case x < 7:
		n = min(n*6, size-off)
		fs.Begin(change{off: off, n: n})
		return c.Discard(off, n)
	case x < 9:
		if err := c.Flush(); err != nil {
			return err
		}
		fs.Mark(change{flushed: true})
	case !k.child:
		grow := size + (r.Int64N(200)+1)*512
		fs.Begin(change{size: grow})
		if err := c.Grow(context.Background(), grow); err != nil {
			return err
		}
		fs.Mark(change{grown: true, size: grow})
	}
	return nil
}

// TestEveryFailure lets the n-th operation on the file system fail, for every n. Then the disk is opened again, with the
// same demands as after a power loss.
func TestEveryFailure(t *testing.T) {
	for _, k := range crashCases {
		if raceDetector && k.name != "sparse" {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			r := seeded(t)
			seed := r.Uint64()
			failed := 0
			for _, errno := range []error{syscall.EIO, syscall.ENOSPC} {
				for n := 1; ; n++ {
					fs, refs := crashDisk(t, k)
					fs.Record()
					fs.FailAt(n, errno)
					j := &journal{FS: fs}
					err := crashRun(newRand(seed), fs.Root(), j, refs, k)
					if n > fs.Ops() {
						break
					}
					if err == nil {
						continue // a punch that failed: nobody needs to know
					}
					failed++
					if want := fault.KindOf(errno); !errors.Is(err, fault.Poisoned) && fault.KindOf(err) != want {
						t.Fatalf("operation %d failed with %v: kind %s, want %s or %s: %v", n, errno, fault.KindOf(err), want, fault.Poisoned, err)
					}
					fs.Heal()
					if err := crashVerify(fs, j.events, refs, k); err != nil {
						t.Fatalf("operation %d failed with %v: %v", n, errno, err)
					}
				}
			}
			if failed < 20 {
				t.Fatalf("only %d failures were seen", failed)
			}
			t.Logf("%d failures", failed)
		})
	}
}

// crashVerify opens what a crash left, twice: what recovery mended must stay.
func crashVerify(cut *sim.FS, events []any, refs []chain.Ref, k crashCase) error {
	sizes := map[int64]bool{k.p.Capacity: true}
	for _, e := range events {
		ch := e.(change)
		if ch.grown {
			clear(sizes)
		}
		if ch.size > 0 {
			sizes[ch.size] = true
		}
	}
	for again := range 2 {
		c, err := chain.Open(cut.Root(), refs, chain.Options{})
		if err != nil {
			return err
		}
		if !sizes[c.Size()] {
			return fmt.Errorf("size %d, want one of %v", c.Size(), sizes)
		}
		got := make([]byte, c.Size())
		if _, err := c.ReadAt(got, 0); err != nil {
			return err
		}
		if err := allowed(got, events, k); err != nil {
			return err
		}
		if err := newContentNewID(got, events, k, headCID(c)); err != nil && again == 0 {
			return err
		}
		if _, err := c.WriteAt(got[:512], 0); err != nil { // it can be written, with the same content
			return err
		}
		if err := c.Close(); err != nil {
			return err
		}
		rep, err := chain.Check(context.Background(), cut.Root(), refs)
		if err != nil {
			return err
		}
		if w, _ := rep.Worst(); w >= vmdk.Warning && k.p.Type != vmdk.MonolithicFlat && !onlyGrowth(rep) {
			return fmt.Errorf("check: %v", rep.Problems)
		}
	}
	return nil
}

// onlyGrowth: a header ahead of the descriptor is what a growth that was cut off leaves; repeating it is the remedy.
func onlyGrowth(rep vmdk.Report) bool {
	for _, p := range rep.Problems {
		if p.Severity >= vmdk.Warning && p.Code != vmdk.CapacityDiffers {
			return false
		}
	}
	return true
}

func headCID(c *chain.Chain) vmdk.CID {
	l := c.Links()
	return l[len(l)-1].Descriptor().CID()
}

// newContentNewID: equal content IDs mean equal content.
func newContentNewID(got []byte, events []any, k crashCase, cid vmdk.CID) error {
	want := make([]byte, len(got))
	for off := range min(int64(len(want)), k.p.Capacity) {
		if k.child && off%(10<<10) < 4096 {
			want[off] = 0xee
		}
	}
	last := -1
	for i, e := range events {
		if e.(change).open {
			last = i
		}
	}
	if last < 0 || events[last].(change).cid != cid {
		return nil
	}
	for _, e := range events[:last] {
		ch := e.(change)
		for i := ch.off; i < min(ch.off+ch.n, int64(len(want))); i++ {
			want[i] = ch.fill
		}
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("the content changed, its ID %s did not", cid)
	}
	return nil
}

// allowed checks every sector: its content is that of the last change before the last flush, or of a later change.
func allowed(got []byte, events []any, k crashCase) error {
	last := len(events)
	for last > 0 && !events[last-1].(change).flushed {
		last--
	}
	for off := int64(0); off < int64(len(got)); off += 512 {
		v := got[off]
		for _, b := range got[off : off+512] {
			if b != v {
				return fmt.Errorf("the sector at %d is torn", off)
			}
		}
		base := byte(0)
		if k.child && off%(10<<10) < 4096 && off < k.p.Capacity {
			base = 0xee
		}
		ok := false
		for i := len(events) - 1; i >= 0 && !ok; i-- {
			ch := events[i].(change)
			if ch.flushed || ch.size > 0 || off < ch.off || off >= ch.off+ch.n {
				continue
			}
			ok = ch.fill == v
			if i < last {
				base = ch.fill
				break
			}
		}
		if !ok && v != base {
			return fmt.Errorf("the sector at %d reads %#x, its last flushed content is %#x", off, v, base)
		}
	}
	return nil
}

// TestPowerLossAfterZeroGrain: a child's first grain is one of zeros, for which nothing is written: the end of the file
// that holds it must be durable before its table entry all the same.
func TestPowerLossAfterZeroGrain(t *testing.T) {
	k := crashCase{"zero", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 96 << 10, GrainSectors: 8}, true, 0}
	fs, refs := crashDisk(t, k)
	c, err := chain.Open(fs.Root(), refs, chain.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil { // from here on only what is written needs a sync
		t.Fatal(err)
	}
	fs.Record()
	fs.Begin(change{off: 0, n: 4096})
	if err := c.WriteZeroes(0, 4096); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	fs.Mark(change{flushed: true})
	for cut := range fs.Crashes(64, 1) {
		if err := crashVerify(cut, cut.Events(), refs, k); err != nil {
			t.Fatalf("%s: %v", cut.Cut(), err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}
