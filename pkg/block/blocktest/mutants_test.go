package blocktest

import (
	"io"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
)

// Devices with one fault each.
type (
	wrongSize   struct{ block.Device }
	dirty       struct{ block.Device }
	unchecked   struct{ block.Device }
	leaky       struct{ block.Device }
	keeps       struct{ block.Device }
	late        struct{ *block.Mem }
	wholeGrains struct{ block.Device }
	forgives    struct{ block.Device }
)

func (d wrongSize) Size() int64 { return d.Device.Size() + 512 }

func (d dirty) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.Device.ReadAt(p, off)
	if n > 0 && p[n-1] == 0 {
		p[n-1] = 1
	}
	return n, err
}

func (d unchecked) Discard(off, n int64) error {
	if block.CheckRange(d.Size(), off, n) != nil {
		return nil
	}
	return d.Device.Discard(off, n)
}

func (d leaky) WriteAt(p []byte, off int64) (int, error) { // spills into the next byte
	n, err := d.Device.WriteAt(p, off)
	if err == nil && off+int64(n) < Size && n > 0 {
		d.Device.WriteAt(p[n-1:], off+int64(n))
	}
	return n, err
}

func (d keeps) Discard(off, n int64) error { return block.CheckRange(d.Size(), off, n) }

func (d late) WriteAt(p []byte, off int64) (int, error) { // every second write is answered only
	if len(p) == 4096 {
		return len(p), nil
	}
	return d.Mem.WriteAt(p, off)
}

func (d wholeGrains) WriteAt(p []byte, off int64) (int, error) { // read-modify-write without a lock
	lo := off &^ 4095
	buf := make([]byte, min(Size, (off+int64(len(p))+4095)&^4095)-lo)
	if _, err := d.Device.ReadAt(buf, lo); err != nil && err != io.EOF {
		return 0, err
	}
	copy(buf[off-lo:], p)
	_, err := d.Device.WriteAt(buf, lo)
	return len(p), err
}

func (d forgives) Flush() error { d.Device.Flush(); return nil }

func TestChecksFail(t *testing.T) {
	mutants := map[string]func(m *block.Mem) block.Device{
		"size":       func(m *block.Mem) block.Device { return wrongSize{m} },
		"fresh":      func(m *block.Mem) block.Device { return dirty{m} },
		"range":      func(m *block.Mem) block.Device { return unchecked{m} },
		"model":      func(m *block.Mem) block.Device { return leaky{m} },
		"zero":       func(m *block.Mem) block.Device { return keeps{m} },
		"visible":    func(m *block.Mem) block.Device { return late{m} },
		"neighbours": func(m *block.Mem) block.Device { return wholeGrains{m} },
	}
	for _, c := range Checks() {
		mutant, ok := mutants[c.Name]
		if !ok {
			t.Errorf("no mutant for check %q", c.Name)
			continue
		}
		var err error
		for range 50 { // a race needs its moment
			if err = c.Run(mutant(block.Memory(Size))); err != nil {
				break
			}
		}
		if err == nil {
			t.Errorf("check %q passes for a device that breaks it", c.Name)
		}
	}
	m := block.Memory(Size)
	if Poison(forgives{m}, func() { m.FailFlush(io.ErrUnexpectedEOF) }) == nil {
		t.Error("Poison passes for a device that forgives a failed flush")
	}
}
