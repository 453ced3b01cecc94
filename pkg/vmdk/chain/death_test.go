package chain_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// TestDeathAnywhere lets the process die before each operation on the file system, in the middle of writes, flushes and
// growth. The machine lives on, so everything done before is there. The successor must find every acknowledged change;
// only the request under way may be done in part.
func TestDeathAnywhere(t *testing.T) {
	chosen := sample(t, len(crashCases), 2)
	for i, k := range crashCases {
		if !chosen(i) {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			seed := seeded(t).Uint64()
			step := 1
			if raceDetector {
				step = 7
			}
			deaths := 0
			for n := 1; ; n += step {
				fs, refs := crashDisk(t, k)
				fs.Record()
				fs.FailFrom(n, syscall.EIO)
				h := &life{r: newRand(seed), k: k, refs: refs, fs: fs, pending: &chain.MemoryPending{Max: 24}}
				if k.child {
					h.want = fillChildBase(k)
				} else {
					h.want = make([]byte, k.p.Capacity)
				}
				if alive := h.live(); alive {
					break
				}
				deaths++
				fs.Heal()
				if err := h.inherit(); err != nil {
					t.Fatalf("death at operation %d, in %s: %v", n, h.doing, err)
				}
			}
			if deaths < 10/step+1 {
				t.Fatalf("only %d deaths", deaths)
			}
			t.Logf("%d deaths", deaths)
		})
	}
}

func fillChildBase(k crashCase) []byte {
	b := make([]byte, k.p.Capacity)
	for off := int64(0); off < k.p.Capacity; off += 10 << 10 {
		copy(b[off:], fillOf(4096, 0xee))
	}
	return b
}

// life is a process that serves a disk, and what it promised.
type life struct {
	r       *rand.Rand
	k       crashCase
	refs    []chain.Ref
	fs      *sim.FS
	pending *chain.MemoryPending
	want    []byte
	opened  bool
	doing   string
	off, n  int64 // what the request under way may have changed
	fill    byte
	grow    int64 // size it may have got
}

// live serves until something fails, and tells whether nothing did.
func (h *life) live() bool {
	h.doing = "open"
	c, err := chain.Open(h.fs.Root(), h.refs, chain.Options{Pending: h.pending})
	if err != nil {
		return false
	}
	h.opened = true
	for i := range h.k.ops * 3 {
		if err := h.step(c, byte(i%250+1)); err != nil {
			_ = c.Abandon() // closing can fail too: the process is dead
			return false
		}
	}
	h.doing, h.off, h.n, h.grow = "close", 0, 0, 0
	return c.Close() == nil
}

func (h *life) step(c *chain.Chain, fill byte) error {
	size := int64(len(h.want))
	n := (h.r.Int64N(12) + 1) * 512
	off := h.r.Int64N((size-n)/512+1) * 512
	h.off, h.n, h.fill, h.grow = off, n, fill, 0
	var err error
	switch x := h.r.IntN(10); {
	case x < 5:
		h.doing = fmt.Sprintf("write %d+%d", off, n)
		_, err = c.WriteAt(fillOf(int(n), fill), off)
	case x < 7:
		h.n, h.fill = min(n*6, size-off), 0
		h.doing = fmt.Sprintf("discard %d+%d", off, h.n)
		err = c.Discard(off, h.n)
	case x < 9 || h.k.child:
		h.doing, h.n = "flush", 0
		err = c.Flush()
	default:
		h.n, h.grow = 0, size+(h.r.Int64N(200)+1)*512
		h.doing = fmt.Sprintf("grow to %d", h.grow)
		if err = c.Grow(context.Background(), h.grow); err == nil {
			h.want = append(h.want, make([]byte, h.grow-size)...)
		}
	}
	if err == nil {
		copy(h.want[h.off:h.off+h.n], fillOf(int(h.n), h.fill))
	}
	return err
}

// inherit opens the disk as the successor, twice, with a flush and a clean close at last.
func (h *life) inherit() error {
	for round := range 2 {
		c, err := chain.Open(h.fs.Root(), h.refs, chain.Options{Pending: h.pending, Takeover: h.opened})
		if err != nil {
			return err
		}
		if err := h.compare(c); err != nil {
			return errors.Join(err, c.Abandon())
		}
		if round == 0 {
			if err := c.Abandon(); err != nil {
				return err
			}
			continue
		}
		if h.grow > c.Size() { // what the dead process did not finish is asked for again
			if err := c.Grow(context.Background(), h.grow); err != nil {
				return err
			}
		}
		if err := c.Close(); err != nil {
			return err
		}
	}
	if n := len(h.pending.Load()); n > 0 {
		return fmt.Errorf("%d pending entries after a clean close", n)
	}
	rep, err := chain.Check(context.Background(), h.fs.Root(), h.refs)
	if w, _ := rep.Worst(); err == nil && w >= vmdk.Warning {
		err = fmt.Errorf("check: %v", rep.Problems)
	}
	return err
}

func (h *life) compare(c *chain.Chain) error {
	size := int64(len(h.want))
	if c.Size() != size && c.Size() != h.grow {
		return fmt.Errorf("size %d, want %d or %d", c.Size(), size, h.grow)
	}
	got := make([]byte, size)
	if _, err := c.ReadAt(got, 0); err != nil {
		return err
	}
	for off, v := range got {
		at := int64(off)
		if v != h.want[off] && (v != h.fill || at < h.off || at >= h.off+h.n) {
			return fmt.Errorf("byte %d is %#x, acknowledged was %#x", off, v, h.want[off])
		}
	}
	return nil
}
