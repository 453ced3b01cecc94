package nbd

import (
	"bytes"
	"errors"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/block/blocktest"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

func TestClientIsADevice(t *testing.T) {
	for _, tc := range []struct {
		name string
		e    Export
		o    ClientOptions
	}{
		{"one connection", Export{}, ClientOptions{}},
		{"many", Export{MultiConn: true}, ClientOptions{}},
		{"little room", Export{MultiConn: true}, ClientOptions{KeepBytes: 100_000}},
		{"blocks of 512", Export{MultiConn: true, MinBlock: 512}, ClientOptions{}},
		{"blocks of 4096", Export{MinBlock: 4096}, ClientOptions{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var mem *block.Mem
			blocktest.Run(t, blocktest.Subject{
				New: func(t *testing.T) block.Device {
					mem = block.Memory(blocktest.Size)
					e := tc.e
					e.Device = mem
					return newRig(t, named{"": &e}, ServerOptions{}).client(tc.o)
				},
				BreakFlush: func(block.Device) { mem.FailFlush(errors.New("no luck")) },
			})
		})
	}
}

func TestClientFaults(t *testing.T) {
	g := newRig(t, named{"": {Device: block.Memory(1 << 20)}, "ro": {Device: block.Memory(1 << 20), ReadOnly: true}}, ServerOptions{})
	c := g.client(ClientOptions{})
	for off, n := range map[int64]int{1 << 20: 1, -1: 5, 1<<20 - 3: 4} {
		if _, err := c.ReadAt(make([]byte, n), off); !errors.Is(err, fault.OutOfRange) {
			t.Errorf("read %d at %d: %v", n, off, err)
		}
	}
	ro := g.client(ClientOptions{Export: "ro"})
	if _, err := ro.WriteAt([]byte{1}, 0); !errors.Is(err, fault.ReadOnly) {
		t.Errorf("write: %v", err)
	}
	if err := ro.Flush(); err != nil {
		t.Errorf("flush of what cannot be written: %v", err)
	}
	_, err := Connect(t.Context(), ClientOptions{Network: "unix", Address: g.path, Export: "other"})
	if !errors.Is(err, fault.NotFound) {
		t.Errorf("no such export: %v", err)
	}
	_, err = Connect(t.Context(), ClientOptions{Network: "unix", Address: g.path + "x"})
	if !errors.Is(err, fault.Unavailable) {
		t.Errorf("no server: %v", err)
	}
}

func TestClientAllocation(t *testing.T) {
	mem := block.Memory(16 << 20)
	g := newRig(t, named{"": {Device: mem, Allocation: checkered(1 << 20)}}, ServerOptions{})
	c := g.client(ClientOptions{})
	if _, err := mem.WriteAt(bytes.Repeat([]byte{7}, 1<<20), 1<<20); err != nil {
		t.Fatal(err)
	}
	off := int64(100_000)
	for x, err := range c.Allocation(off, 5<<20) {
		if err != nil {
			t.Fatal(err)
		}
		if want := checkers(1<<20, off); x.Flags != want {
			t.Errorf("at %d: %+v, want %d", off, x, want)
		}
		off += x.Length
	}
	if off != 100_000+5<<20 {
		t.Errorf("it ended at %d", off)
	}
	// A read over holes and data, whose holes come as such.
	p := bytes.Repeat([]byte{0xee}, 3<<20)
	if _, err := c.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p[:1<<20], make([]byte, 1<<20)) || !bytes.Equal(p[1<<20:2<<20], bytes.Repeat([]byte{7}, 1<<20)) || p[2<<20] != 0 {
		t.Error("the read is wrong")
	}
}
