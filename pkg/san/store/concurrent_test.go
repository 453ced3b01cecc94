package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// scribe changes one file at random beside others that do the same with theirs, and knows what must be in it.
type scribe struct {
	d    fsx.Dir
	name string
	rng  *rand.Rand
	want []byte
}

// step is one change; on a full store it is none.
func (s *scribe) step(i int) error {
	f, err := s.d.Open(s.name, fsx.ReadWrite|fsx.Create)
	if err != nil {
		return err
	}
	defer f.Close()
	off, n := s.rng.IntN(48<<10), 1+s.rng.IntN(12<<10)
	next := bytes.Clone(s.want)
	grow := func(to int) { next = append(next, make([]byte, max(0, to-len(next)))...) }
	clearing := func() { clear(next[min(off, len(next)):min(off+n, len(next))]) }
	switch k := s.rng.IntN(20); {
	case k < 9:
		p := bytes.Repeat([]byte{byte(i)}, n)
		grow(off + n)
		copy(next[off:], p)
		_, err = f.WriteAt(p, int64(off))
	case k < 11:
		grow(off)
		next = next[:off]
		err = f.Truncate(int64(off))
	case k < 13:
		clearing()
		err = f.Punch(int64(off), int64(n))
	case k < 14:
		clearing()
		err = f.Zero(int64(off), int64(n))
		if errors.Is(err, fault.NoSpace) { // what had a place is zeroed, holes read as zeros
			s.want = next
		}
	case k < 15:
		next = nil
		err = s.d.Remove(s.name)
	case k < 17:
		err = f.Datasync()
	case k < 18:
		err = s.d.Sync()
	default:
		return s.compare(f)
	}
	if errors.Is(err, fault.NoSpace) {
		return nil
	}
	if err == nil {
		s.want = next
	}
	return err
}

func (s *scribe) compare(f fsx.File) error {
	p := make([]byte, len(s.want)+1)
	n, err := f.ReadAt(p, 0)
	if err != io.EOF {
		return fmt.Errorf("%s is longer than %d bytes (%v)", s.name, len(s.want), err)
	}
	if !bytes.Equal(p[:n], s.want) {
		return fmt.Errorf("%s differs", s.name)
	}
	return nil
}

// TestConcurrent: files do not disturb each other, on a store that is full again and again.
func TestConcurrent(t *testing.T) {
	seed := seeds(t, 1)[0]
	fs := sim.New(sim.Options{})
	s := formatted(t, fs.Root(), 1<<20+32<<10+4096+60*4096, tiny)
	var wg sync.WaitGroup
	scribes := make([]*scribe, 8)
	for c := range scribes {
		x := &scribe{d: s.Root(), name: fmt.Sprint("f", c), rng: rand.New(rand.NewPCG(seed, uint64(c)))}
		scribes[c] = x
		wg.Go(func() {
			for i := range 400 {
				if err := x.step(i); err != nil {
					t.Errorf("SEED=%d: %s, step %d: %v", seed, x.name, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	must(t, s.Close())
	s, err := openIn(fs)
	must(t, err)
	for _, x := range scribes {
		f, err := s.Root().Open(x.name, fsx.ReadOnly)
		if errors.Is(err, fault.NotFound) && len(x.want) == 0 {
			continue
		}
		must(t, err)
		must(t, x.compare(f), f.Close())
	}
	lun, err := lunIn(fs)
	must(t, err)
	r, err := store.Check(lun)
	must(t, err)
	if len(r.Problems) > 0 {
		t.Errorf("%v", r.Problems)
	}
}
