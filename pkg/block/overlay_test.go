package block_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/block/blocktest"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

func scratch(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "scratch"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func overlay(t *testing.T, below block.Device, s block.Scratch) *block.Overlaid {
	t.Helper()
	o, err := block.Overlay(below, s)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestOverlayConformance(t *testing.T) {
	blocktest.Run(t, blocktest.Subject{New: func(t *testing.T) block.Device {
		return overlay(t, block.ReadOnly(block.Memory(blocktest.Size)), scratch(t))
	}})
}

// Random changes against a model, with another overlay on the same file in between, as after a death.
func TestOverlayAgainstAModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, seed))
	const size = 1<<20 + 512*3
	below := block.Memory(size)
	model := make([]byte, size)
	for i := range model {
		model[i] = byte(rnd.Uint32())
	}
	if _, err := below.WriteAt(model, 0); err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(model)
	f := scratch(t)
	o := overlay(t, block.ReadOnly(below), f)
	for range 2000 {
		off := rnd.Int64N(size)
		n := min(1+rnd.Int64N(20000), size-off)
		if rnd.IntN(3) == 0 {
			off, n = off/4096*4096, min(4096*(1+rnd.Int64N(6)), size-off/4096*4096)
		}
		var err error
		switch rnd.IntN(5) {
		case 0:
			err = o.WriteZeroes(off, n)
			clear(model[off : off+n])
		case 1:
			err = o.Discard(off, n)
			clear(model[off : off+n])
		case 2:
			o = overlay(t, block.ReadOnly(below), f)
		default:
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
			_, err = o.WriteAt(p, off)
			copy(model[off:], p)
		}
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, n)
		if _, err := o.ReadAt(got, off); err != nil || !bytes.Equal(got, model[off:off+n]) {
			t.Fatalf("[%d, +%d): other content, %v", off, n, err)
		}
	}
	for what, c := range map[string]struct {
		d    block.Device
		want []byte
	}{"the overlay": {overlay(t, block.ReadOnly(below), f), model}, "the disk below": {below, before}} {
		got := make([]byte, size)
		if _, err := c.d.ReadAt(got, 0); err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("%s has other content at the end, %v", what, err)
		}
	}
}

func TestOverlayOfAnotherDisk(t *testing.T) {
	f := scratch(t)
	overlay(t, block.Memory(1<<20), f)
	if _, err := block.Overlay(block.Memory(2<<20), f); !errors.Is(err, fault.Damaged) {
		t.Fatalf("%v, want Damaged", err)
	}
}

// full is a scratch file without room behind its map.
type full struct{ block.Scratch }

func (f full) WriteAt(p []byte, off int64) (int, error) {
	if len(p) >= 4096 {
		return 0, syscall.ENOSPC
	}
	return f.Scratch.WriteAt(p, off)
}

func TestOverlayWithoutRoom(t *testing.T) {
	below := block.Memory(1 << 20)
	if _, err := below.WriteAt([]byte("content"), 8192); err != nil {
		t.Fatal(err)
	}
	o := overlay(t, below, full{scratch(t)})
	if _, err := o.WriteAt([]byte("other"), 8192); !errors.Is(err, fault.NoSpace) {
		t.Fatalf("%v, want NoSpace", err)
	}
	p := make([]byte, 7)
	if _, err := o.ReadAt(p, 8192); err != nil || string(p) != "content" {
		t.Fatalf("after a write that failed: %q, %v", p, err)
	}
}
