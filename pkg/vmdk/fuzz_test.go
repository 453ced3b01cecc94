package vmdk

import (
	"bytes"
	"context"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/vmdktest"
)

// FuzzDescriptor: parsing never fails but with fault.Damaged, and what is parsed is written back byte for byte and
// survives a change.
func FuzzDescriptor(f *testing.F) {
	f.Add([]byte("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"a\" 0\nddb.x = \"1\"\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		defer vmdktest.Bounded(t)
		d, err := ParseDescriptor(text)
		if err != nil {
			if fault.KindOf(err) != fault.Damaged {
				t.Fatalf("%v", err)
			}
			return
		}
		if want, _, _ := bytes.Cut(text, []byte{0}); !bytes.Equal(d.Text(), want) {
			got := d.Text()
			t.Fatalf("%q is written as %q", text, got)
		}
		extents := d.Extents()
		if err := d.setContent(0x1234, newLongContentID(0x1234)); err != nil {
			t.Fatal(err)
		}
		again, err := ParseDescriptor(d.Text())
		if err != nil {
			if len(text) > maxDescriptorBytes-200 || bytes.Count(text, []byte("\n")) >= maxDescriptorLines-2 {
				return // the new lines went over a limit
			}
			t.Fatalf("after a change: %v in %q", err, d.Text())
		}
		if again.CID() != 0x1234 || len(again.Extents()) != len(extents) || again.Capacity() != d.Capacity() {
			t.Fatalf("after a change: %q", again.Text())
		}
	})
}

// FuzzSparse: a file with an embedded descriptor, whatever is in it, is opened, checked, read and recovered without a
// panic and without memory that its size does not justify.
func FuzzSparse(f *testing.F) {
	good := sim.New(sim.Options{}).Root()
	if _, err := Create(context.Background(), good, "disk.vmdk", CreateParams{Type: MonolithicSparse, Capacity: 1 << 20, GrainSectors: 8}); err != nil {
		f.Fatal(err)
	}
	file, err := good.Open("disk.vmdk", 0)
	if err != nil {
		f.Fatal(err)
	}
	image := make([]byte, 128*SectorSize)
	n, _ := file.ReadAt(image, 0) // to the end of the file
	if err := file.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(0), []byte("KDMV"))
	f.Add(uint16(12), []byte{0, 0, 0, 0, 1})
	f.Add(uint16(56), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Add(uint16(72), []byte{1})
	f.Add(uint16(21*512), []byte{1, 0, 0, 0})
	f.Add(uint16(22*512), []byte{64, 0, 0, 0, 64, 0, 0, 0})
	f.Fuzz(func(t *testing.T, at uint16, change []byte) {
		defer vmdktest.Bounded(t)
		b := bytes.Clone(image[:n])
		copy(b[min(int(at), len(b)):], change)
		d := sim.New(sim.Options{}).Root()
		if err := writeFile(d, "disk.vmdk", b); err != nil {
			t.Fatal(err)
		}
		useWhatever(t, d)
	})
}

// useWhatever opens, checks, reads and recovers a disk that may be anything.
func useWhatever(t *testing.T, d fsx.Dir) {
	t.Helper()
	if _, err := Check(context.Background(), d, "disk.vmdk"); err != nil {
		t.Fatalf("check: %v", err)
	}
	l, err := Open(d, "disk.vmdk", Options{ReadWrite: true})
	if err != nil {
		return
	}
	for _, e := range l.Extents() {
		for off := int64(0); off < min(e.Len, 4<<20); {
			r, err := e.Run(off, e.Len-off)
			if err != nil {
				break
			}
			if r.Len <= 0 {
				t.Fatalf("run at %d: %+v", off, r)
			}
			if r.State == Allocated {
				_ = e.ReadFile(make([]byte, min(r.Len, 1<<20)), r.Offset)
			}
			off += r.Len
		}
	}
	if err := l.Recover(); err != nil && fault.KindOf(err) != fault.Damaged {
		t.Fatalf("recover: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
