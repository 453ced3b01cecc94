package fsxtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
)

// seed is the environment's SEED or the time.
func seed() uint64 {
	if s, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		return s
	}
	return uint64(time.Now().UnixNano())
}

// checkMixed compares random requests of every alignment on a Direct file with a model.
func checkMixed(d fsx.Dir) error {
	s := seed()
	if err := mixed(d, rand.New(rand.NewPCG(s, 1))); err != nil {
		return fmt.Errorf("SEED=%d: %w", s, err)
	}
	return nil
}

func mixed(d fsx.Dir, rng *rand.Rand) error {
	f, err := d.Open("f", fsx.ReadWrite|fsx.Create|fsx.Direct)
	if err != nil {
		return err
	}
	defer f.Close()
	const limit = 1 << 20
	var model []byte
	buf := fsx.AlignedBuffer(limit)
	unit := []int{1, 512, 4096}
	for i := range 300 {
		u := unit[rng.IntN(3)]
		off := rng.IntN(limit/u/2) * u
		n := min(limit-off, (1+rng.IntN(1+min(limit/2, 64<<10<<rng.IntN(3))/u))*u)
		p := buf[rng.IntN(2):]
		p = p[:min(n, len(p))]
		what := fmt.Sprintf("request %d at %d, %d bytes", i, off, len(p))
		if rng.IntN(2) == 0 {
			for j := range p {
				p[j] = byte(i + j/512)
			}
			if _, err := f.WriteAt(p, int64(off)); err != nil {
				return fmt.Errorf("write %s: %w", what, err)
			}
			if len(model) < off+len(p) {
				model = append(model, make([]byte, off+len(p)-len(model))...)
			}
			copy(model[off:], p)
			continue
		}
		got, err := f.ReadAt(p, int64(off))
		want := min(len(p), max(0, len(model)-off))
		if got != want || (err == nil) != (got == len(p)) {
			return fmt.Errorf("read %s: %d bytes, %v; want %d", what, got, err, want)
		}
		if off < len(model) {
			if j := differ(p[:got], model[off:off+got]); j >= 0 {
				return fmt.Errorf("read %s: byte %d is %#x, want %#x", what, off+j, p[j], model[off+j])
			}
		}
	}
	return contains(f, model)
}

// checkConcurrent: writers of neighbouring ranges that share sectors, pages and blocks lose nothing to each other.
func checkConcurrent(d fsx.Dir) error {
	f, err := create(d, "init", make([]byte, 64<<10))
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if f, err = d.Open("init", fsx.ReadWrite|fsx.Direct); err != nil {
		return err
	}
	defer f.Close()
	widths := []int{512, 512, 300, 724, 2048, 4096, 4096, 4096} // of 16384: every writer has its own ranges
	errs := make([]error, len(widths))
	var wg sync.WaitGroup
	at := 0
	want := make([]byte, 64<<10)
	for w, width := range widths {
		start := at
		at += width
		for base := 0; base < len(want); base += 16 << 10 {
			for i := range width {
				want[base+start+i] = byte(w + 51)
			}
		}
		wg.Go(func() {
			p := fsx.AlignedBuffer(width)
			for round := range 20 {
				for i := range p {
					p[i] = byte(w + 32 + round)
				}
				for base := 0; base < len(want) && errs[w] == nil; base += 16 << 10 {
					_, errs[w] = f.WriteAt(p, int64(base+start))
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return contains(f, want)
}
