package chain_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain/chaintest"
)

func TestMemoryPending(t *testing.T) {
	same := func(_ *testing.T, p chain.Pending) chain.Pending { return p }
	chaintest.RunPending(t, func(*testing.T) chain.Pending { return &chain.MemoryPending{} }, same)
	chaintest.RunPending(t, func(*testing.T) chain.Pending { return &chain.MemoryPending{Max: 100} }, same)
}

// TestTakeover drops the chain without a close at random points. The successor must find everything acknowledged, and
// must not hand out a place that is in use.
func TestTakeover(t *testing.T) {
	chosen := sample(t, 2*len(peerDisks), 4)
	for i, k := range peerDisks {
		for j, children := range []int{0, 2} {
			if !chosen(2*i + j) {
				continue
			}
			t.Run(fmt.Sprintf("%s+%d", k.name, children), func(t *testing.T) {
				d := newDisk(t, seeded(t), k.p)
				pending := &chain.MemoryPending{Max: 8 + d.r.IntN(100)}
				d.o = chain.Options{Direct: d.r.IntN(2) == 0}
				for range children {
					d.open()
					d.steps(15)
					d.close()
					d.addChild(vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, ExtentSize: 4 * mib})
				}
				d.o.Pending, d.o.Locks = pending, true
				d.open()
				for range 5 {
					for range d.r.IntN(20) {
						d.step()
					}
					if err := d.c.Abandon(); err != nil {
						t.Fatal(err)
					}
					d.o.Takeover = true
					d.open()
					d.checkAll()
				}
				d.close()
				if n := len(pending.Load()); n != 0 {
					t.Fatalf("%d pending entries after a clean close", n)
				}
				d.sound()
				d.qemuReads()
				d.o.Takeover = false
				d.open()
				d.checkAll()
			})
		}
	}
}

// TestTakeoverNeedsItsTable: what must not be served.
func TestTakeoverNeedsItsTable(t *testing.T) {
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 8 * mib})
	open := func(o chain.Options) error {
		c, err := chain.Open(d.dir, d.refs, o)
		if err == nil {
			err = c.Close()
			return errors.Join(errors.New("opened"), err)
		}
		return err
	}
	if err := open(chain.Options{Takeover: true}); !errors.Is(err, fault.Invalid) {
		t.Errorf("take-over without a table: %v", err)
	}
	for _, e := range []chain.PendingEntry{{Link: 1, Sector: 128}, {Extent: 1, Sector: 128}, {Grain: 1 << 20, Sector: 128}, {Sector: 2}, {Sector: 1 << 30}} {
		p := &chain.MemoryPending{}
		if err := p.Append(e); err != nil {
			t.Fatal(err)
		}
		if err := open(chain.Options{Takeover: true, Pending: p}); !errors.Is(err, fault.Damaged) {
			t.Errorf("take-over with entry %+v: %v", e, err)
		}
		if err := open(chain.Options{Pending: p}); !errors.Is(err, fault.Invalid) {
			t.Errorf("plain open with entry %+v: %v", e, err)
		}
	}
}

// TestConcurrent has writers, each with its own sectors inside grains that all share, readers, discards of whole grains,
// flushes and growth at once.
func TestConcurrent(t *testing.T) {
	for _, k := range []struct {
		name  string
		p     vmdk.CreateParams
		child bool
	}{
		{"flat", vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: 4 * mib}, false},
		{"sparse", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 4 * mib}, false},
		{"child", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 4 * mib}, true},
	} {
		t.Run(k.name, func(t *testing.T) {
			d := newDisk(t, seeded(t), k.p)
			if k.child {
				d.open()
				d.steps(40)
				d.close()
				d.addChild(vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse})
			}
			d.o = chain.Options{Direct: true, Pending: &chain.MemoryPending{Max: 64}}
			d.open()
			d.hammer()
			d.checkAll()
			d.close()
			d.sound()
			d.qemuReads()
		})
	}
}

// hammer: writer w owns the sectors s with s%8 == w in the first half of the disk, and a share of the second half in whole
// grains, which it discards and writes. The last 4 grains belong to all, who discard and write them at once; a place
// that is given up twice there would soon hold two grains.
func (d *disk) hammer() {
	const writers, rounds = 8, 60
	size := int64(len(d.want))
	half := size / 2
	shared := size - 4*65536
	var wg sync.WaitGroup
	var mu sync.Mutex // guards want
	for w := range int64(writers) {
		seed := d.r.Uint64()
		wg.Go(func() {
			r := newRand(seed)
			for range rounds {
				sector := r.Int64N(half/512/writers)*writers + w
				b := fillOf(512, byte(r.IntN(255)+1))
				if _, err := d.c.WriteAt(b, sector*512); err != nil {
					d.t.Errorf("write: %v", err)
					return
				}
				mu.Lock()
				copy(d.want[sector*512:], b)
				mu.Unlock()
				got := make([]byte, 512)
				if _, err := d.c.ReadAt(got, sector*512); err != nil || string(got) != string(b) {
					d.t.Errorf("sector %d: own write not read back: %v", sector, err)
					return
				}
				g := half + (r.Int64N((shared-half)/65536/writers)*writers+w)*65536
				b = fillOf(65536, byte(r.IntN(255)+1))
				var err error
				if r.IntN(2) == 0 {
					clear(b)
					err = d.c.Discard(g, 65536)
				} else {
					_, err = d.c.WriteAt(b, g)
				}
				if err == nil && r.IntN(4) == 0 {
					err = d.c.Flush()
				}
				if err != nil {
					d.t.Errorf("grain at %d: %v", g, err)
					return
				}
				mu.Lock()
				copy(d.want[g:], b)
				mu.Unlock()
				for range 3 {
					g = shared + r.Int64N(4)*65536
					if r.IntN(2) == 0 {
						err = d.c.Discard(g, 65536)
					} else {
						_, err = d.c.WriteAt(b[:4096], g)
					}
					if err != nil {
						d.t.Errorf("shared grain at %d: %v", g, err)
						return
					}
				}
			}
		})
	}
	for range 3 { // the head grows under them
		if len(d.refs) > 1 {
			break
		}
		size := d.c.Size() + 33*mib
		if err := d.c.Grow(context.Background(), size); err != nil {
			d.t.Errorf("grow: %v", err)
		}
		mu.Lock()
		d.want = append(d.want, make([]byte, 33*mib)...)
		mu.Unlock()
	}
	wg.Wait()
	end := fillOf(4*65536, 0x55)
	if _, err := d.c.WriteAt(end, shared); err != nil {
		d.t.Errorf("write: %v", err)
	}
	copy(d.want[shared:], end)
}
