package chain_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// TestChangesConcurrent has writers, each with its own sectors inside grains that all share, while another goroutine takes
// snapshots and merges in both directions, some of them cancelled. Each writer reads back what it wrote, all the time.
func TestChangesConcurrent(t *testing.T) {
	defer chain.SetPiece(128<<10, 512<<10)()
	for _, base := range []vmdk.CreateParams{
		{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 2*mib + 512, GrainSectors: 8},
		{Type: vmdk.MonolithicFlat, Capacity: 2*mib + 1024},
	} {
		t.Run(string(base.Type), func(t *testing.T) {
			d := newDisk(t, seeded(t), base)
			d.o = chain.Options{Direct: true, Pending: &chain.MemoryPending{Max: 64}, Locks: true}
			d.open()
			stop := make(chan struct{})
			var wg sync.WaitGroup
			end := sync.OnceFunc(func() { close(stop); wg.Wait() })
			defer end()
			const writers = 6
			for w := range int64(writers) {
				wg.Go(func() { d.ownSectors(newRand(uint64(w)), w, writers, stop) })
			}
			rounds := 12
			if raceDetector {
				rounds = 5
			}
			for range rounds {
				for range d.r.IntN(3) + 1 {
					d.snapshot()
				}
				for len(d.c.Links()) > 1+d.r.IntN(2) {
					d.mergeUnder()
				}
				d.record()
			}
			end()
			d.checkAll()
			d.close()
			d.sound()
			d.qemuSees(d.refs[len(d.refs)-1].Name, d.want)
		})
	}
}

// mergeUnder merges a random pair; one in four is cancelled.
func (d *disk) mergeUnder() {
	d.t.Helper()
	lower := len(d.c.Links()) - 2 // the head, mostly
	if d.r.IntN(3) == 0 {
		lower = d.r.IntN(lower + 1)
	}
	dir := chain.Up
	if d.r.IntN(3) > 0 {
		dir = chain.Down
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p := chain.MergeParams{Lower: lower, Direction: dir}
	if d.r.IntN(4) == 0 {
		left := d.r.IntN(6)
		p.Pace = func(context.Context, int64) error {
			if left--; left < 0 {
				cancel()
			}
			return nil
		}
	}
	before := d.c.Links()
	err := d.c.Merge(ctx, p)
	d.record()
	if err != nil {
		if ctx.Err() == nil {
			d.t.Fatalf("merge %d of %d %s: %v", lower, len(before), dir, err)
		}
		return
	}
	gone := before[lower]
	if dir == chain.Down {
		gone = before[lower+1]
	}
	if err := d.dir.Remove(gone.Name); err != nil {
		d.t.Fatal(err)
	}
	for _, e := range gone.Extents() {
		if err := d.dir.Remove(e.Name); err != nil {
			d.t.Fatal(err)
		}
	}
}

// ownSectors writes, discards and reads the sectors s with s%of == w, until stop.
func (d *disk) ownSectors(r interface{ Int64N(int64) int64 }, w, of int64, stop chan struct{}) {
	sectors := int64(len(d.want)) / 512
	mine := map[int64]byte{}
	defer func() {
		for s, b := range mine {
			copy(d.want[s*512:], fillOf(512, b)) // nobody else touches these bytes
		}
	}()
	for {
		select {
		case <-stop:
			return
		default:
		}
		s := r.Int64N((sectors-1-w)/of)*of + w
		got := make([]byte, 512)
		_, err := d.c.ReadAt(got, s*512)
		if err == nil && string(got) != string(fillOf(512, mine[s])) {
			d.t.Errorf("sector %d reads %#x..%#x, want %#x", s, got[0], got[511], mine[s])
			return
		}
		b := byte(r.Int64N(255) + 1)
		switch x := r.Int64N(16); {
		case err != nil:
		case x < 12:
			_, err = d.c.WriteAt(fillOf(512, b), s*512)
		case x < 15:
			b = 0
			err = d.c.Discard(s*512, 512)
		default:
			b = mine[s]
			err = d.c.Flush()
		}
		if err != nil {
			d.t.Errorf("sector %d: %v", s, err)
			return
		}
		mine[s] = b
	}
}

// watched is a directory that tells of every rename.
type watched struct {
	fsx.Dir
	renamed func(name string)
}

func (w watched) LinkFrom(src fsx.Dir, srcName, name string) error {
	if s, ok := src.(watched); ok {
		src = s.Dir
	}
	return w.Dir.LinkFrom(src, srcName, name)
}

func (w watched) Rename(oldName, newName string) error {
	err := w.Dir.Rename(oldName, newName)
	if err == nil {
		w.renamed(newName)
	}
	return err
}

// TestMergeDescriptors: whoever opens the chain by the head's descriptor reads the disk at every moment, also between the
// descriptors that a merge changes.
func TestMergeDescriptors(t *testing.T) {
	chosen := sample(t, 6*len(peerDisks), 6*len(peerDisks)/9)
	for n, k := range peerDisks {
		if k.name != "sparse" && k.name != "flat-thin" && k.name != "embedded" {
			continue
		}
		for lower := range 3 {
			for j, dir := range []chain.Direction{chain.Down, chain.Up} {
				if !chosen(6*n + 2*lower + j) {
					continue
				}
				t.Run(fmt.Sprintf("%s/%d/%s", k.name, lower, dir), func(t *testing.T) {
					d := newDisk(t, seeded(t), k.p)
					plain := d.dir
					d.open()
					d.growing(3, 6, false)
					d.close()
					committed, head, seen := false, d.refs[3].Name, 0
					d.dir = watched{plain, func(name string) {
						if committed && filepath.Ext(name) == ".vmdk" {
							seen++
							d.qemuSees(head, d.want)
						}
					}}
					d.open()
					err := d.merge(chain.MergeParams{Lower: lower, Direction: dir, Commit: func(chain.Identity) error {
						committed = true
						d.qemuSees(head, d.want)
						return nil
					}})
					if err != nil {
						t.Fatal(err)
					}
					if seen == 0 && k.name != "embedded" {
						t.Fatal("no descriptor was replaced")
					}
					d.close()
					d.dir = plain
					d.qemuSees(d.refs[len(d.refs)-1].Name, d.want)
				})
			}
		}
	}
}
