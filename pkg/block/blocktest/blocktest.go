package blocktest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Size is the capacity of the devices that checks use, in bytes: no power of two, so that edges fall inside grains.
const Size = 3<<20 + 512*7

// Check is one property of a zeroed device of Size bytes.
type Check struct {
	Name string
	Run  func(d block.Device) error
}

// Checks are all that need nothing but a device.
func Checks() []Check {
	return []Check{
		{"size", checkSize}, {"fresh", checkFresh}, {"range", checkRange}, {"model", checkModel},
		{"zero", checkZero}, {"visible", checkVisible}, {"neighbours", checkNeighbours},
	}
}

// Subject makes devices to check.
type Subject struct {
	// New makes a zeroed device of Size bytes; it registers its own cleanup.
	New func(t *testing.T) block.Device
	// BreakFlush makes the next Flush of a device from New fail. Without it Run cannot check poisoning.
	BreakFlush func(d block.Device)
}

// Run runs every check on a device of its own.
func Run(t *testing.T, s Subject) {
	for _, c := range Checks() {
		t.Run(c.Name, func(t *testing.T) {
			if err := c.Run(s.New(t)); err != nil {
				t.Fatal(err)
			}
		})
	}
	if s.BreakFlush == nil {
		return
	}
	t.Run("poison", func(t *testing.T) {
		d := s.New(t)
		if err := Poison(d, func() { s.BreakFlush(d) }); err != nil {
			t.Fatal(err)
		}
	})
}

func pattern(n int, with byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = with + byte(i/512)*7 | 1
	}
	return p
}

func checkSize(d block.Device) error {
	if d.Size() != Size {
		return fmt.Errorf("Size %d, want %d", d.Size(), Size)
	}
	return nil
}

func checkFresh(d block.Device) error {
	p := bytes.Repeat([]byte{0xee}, Size)
	if n, err := d.ReadAt(p, 0); n != len(p) || err != nil && err != io.EOF {
		return fmt.Errorf("read all: %d, %v", n, err)
	}
	if i := bytes.IndexFunc(p, func(r rune) bool { return r != 0 }); i >= 0 {
		return fmt.Errorf("a fresh device reads %#x at %d", p[i], i)
	}
	return nil
}

func checkRange(d block.Device) error {
	last := pattern(512, 9)
	if _, err := d.WriteAt(last, Size-512); err != nil {
		return fmt.Errorf("write the last sector: %w", err)
	}
	for _, r := range []struct{ off, n int64 }{
		{Size - 511, 512}, {Size, 1}, {-1, 1}, {-512, 1024}, {Size + 1, 0}, {1<<62 + 5, 512}, {Size - 512, 4096},
	} {
		p := pattern(int(r.n), 77)
		_, read := d.ReadAt(bytes.Clone(p), r.off)
		_, write := d.WriteAt(p, r.off)
		for what, err := range map[string]error{
			"read": read, "write": write, "discard": d.Discard(r.off, r.n), "zeroes": d.WriteZeroes(r.off, r.n),
		} {
			if !errors.Is(err, fault.OutOfRange) {
				return fmt.Errorf("%s of %d bytes at %d: %v, want OutOfRange", what, r.n, r.off, err)
			}
		}
	}
	for what, err := range map[string]error{
		"discard": d.Discard(0, -1), "zeroes": d.WriteZeroes(0, -1), "huge": d.Discard(512, 1<<63-1),
	} {
		if !errors.Is(err, fault.OutOfRange) {
			return fmt.Errorf("%s: %v, want OutOfRange", what, err)
		}
	}
	if err := reads(d, Size-512, last); err != nil {
		return fmt.Errorf("a refused request changed the last sector: %w", err)
	}
	if _, err := d.WriteAt(nil, Size); err != nil {
		return fmt.Errorf("empty write at the end: %w", err)
	}
	return nil
}

func reads(d block.Device, off int64, want []byte) error {
	p := make([]byte, len(want))
	if n, err := d.ReadAt(p, off); n != len(p) || err != nil && err != io.EOF {
		return fmt.Errorf("read %d bytes at %d: %d, %v", len(p), off, n, err)
	}
	if bytes.Equal(p, want) {
		return nil
	}
	for i := range p {
		if p[i] != want[i] {
			return fmt.Errorf("byte %d is %#x, want %#x", off+int64(i), p[i], want[i])
		}
	}
	return nil
}

// Seed is the environment's SEED or the time.
func Seed() uint64 {
	if s, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		return s
	}
	return uint64(time.Now().UnixNano())
}

// checkModel compares a random history with a byte slice.
func checkModel(d block.Device) error {
	s := Seed()
	rng := rand.New(rand.NewPCG(s, 2))
	model := make([]byte, Size)
	for i := range 250 {
		u := []int{1, 512, 4096}[rng.IntN(3)]
		off := rng.IntN(Size/u) * u
		n := min(Size-off, (1+rng.IntN(200_000/u))*u)
		err := step(d, model, rng.IntN(8), off, n, byte(i))
		if err != nil {
			return fmt.Errorf("SEED=%d: request %d: %d bytes at %d: %w", s, i, n, off, err)
		}
	}
	if err := reads(d, 0, model); err != nil {
		return fmt.Errorf("SEED=%d: at the end: %w", s, err)
	}
	return nil
}

func step(d block.Device, model []byte, what, off, n int, value byte) error {
	switch what {
	case 0:
		clear(model[off : off+n])
		return d.Discard(int64(off), int64(n))
	case 1:
		clear(model[off : off+n])
		return d.WriteZeroes(int64(off), int64(n))
	case 2:
		return d.Flush()
	case 3, 4, 5:
		p := pattern(n, value)
		copy(model[off:], p)
		got, err := d.WriteAt(p, int64(off))
		if err == nil && got != n {
			err = io.ErrShortWrite
		}
		return err
	}
	return reads(d, int64(off), model[off:off+n])
}

// checkZero: what was discarded or zeroed reads as zeros, its neighbours do not.
func checkZero(d block.Device) error {
	for what, call := range map[string]func(off, n int64) error{"discard": d.Discard, "write zeroes": d.WriteZeroes} {
		model := pattern(Size, 3)
		if _, err := d.WriteAt(model, 0); err != nil {
			return err
		}
		for _, r := range []struct{ off, n int64 }{{0, 512}, {1000, 1}, {65536, 65536}, {200_000, 300_001}, {Size - 1024, 1024}, {5, 0}} {
			if err := call(r.off, r.n); err != nil {
				return fmt.Errorf("%s %+v: %w", what, r, err)
			}
			clear(model[r.off : r.off+r.n])
			if err := reads(d, 0, model); err != nil {
				return fmt.Errorf("%s %+v: %w", what, r, err)
			}
		}
	}
	return nil
}

// checkVisible: what a writer was told is written, every reader sees.
func checkVisible(d block.Device) error {
	var wg sync.WaitGroup
	errs := make([]error, 6)
	for w := range errs {
		wg.Go(func() {
			off := int64(w) * 50_000
			for round := range byte(30) {
				p := pattern(4096, round)
				if _, errs[w] = d.WriteAt(p, off); errs[w] != nil {
					return
				}
				if errs[w] = reads(d, off, p); errs[w] != nil {
					return
				}
				if round%10 == 9 {
					if errs[w] = d.Flush(); errs[w] != nil {
						return
					}
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// checkNeighbours: concurrent writers of sectors side by side lose nothing to each other, first writes included.
func checkNeighbours(d block.Device) error {
	const writers, sectors = 8, 512
	want := make([]byte, writers*sectors*512)
	var wg sync.WaitGroup
	errs := make([]error, writers)
	for w := range writers {
		for s := w; s < writers*sectors; s += writers {
			for i := range 512 {
				want[s*512+i] = byte(w + 1)
			}
		}
		wg.Go(func() {
			p := bytes.Repeat([]byte{byte(w + 1)}, 512)
			for s := w; s < writers*sectors && errs[w] == nil; s += writers {
				_, errs[w] = d.WriteAt(p, int64(s)*512)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return reads(d, 0, want)
}

// Poison checks that a failed Flush ends the device; arm makes the next one fail.
func Poison(d block.Device, arm func()) error {
	if _, err := d.WriteAt(pattern(512, 1), 0); err != nil {
		return err
	}
	if err := d.Flush(); err != nil {
		return err
	}
	if _, err := d.WriteAt(pattern(100_000, 2), 512); err != nil {
		return err
	}
	arm()
	if err := d.Flush(); err == nil {
		return errors.New("Flush succeeded although it was made to fail")
	}
	_, read := d.ReadAt(make([]byte, 512), 0)
	_, write := d.WriteAt(make([]byte, 512), 0)
	for what, err := range map[string]error{
		"flush": d.Flush(), "read": read, "write": write, "discard": d.Discard(0, 512), "zeroes": d.WriteZeroes(0, 512),
	} {
		if !errors.Is(err, fault.Poisoned) {
			return fmt.Errorf("%s after a failed Flush: %v, want Poisoned", what, err)
		}
	}
	return nil
}
