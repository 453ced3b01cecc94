package vmdk

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/vmdktest"
)

// fuzzCOWD is the descriptor and the extent of a small disk with some grains.
func fuzzCOWD(f *testing.F) (text, image []byte) {
	f.Helper()
	must := func(err error) {
		f.Helper()
		if err != nil {
			f.Fatal(err)
		}
	}
	d := sim.New(sim.Options{}).Root()
	_, err := Create(context.Background(), d, "disk.vmdk", CreateParams{Type: VMFSSparse, Capacity: 64 << 10, GrainSectors: 4})
	must(err)
	l, err := Open(d, "disk.vmdk", Options{ReadWrite: true})
	must(err)
	e := l.Extents()[0]
	must(e.Begin())
	at, n, err := e.Alloc(3)
	must(err)
	must(e.WriteFile(bytes.Repeat([]byte{7}, int(n*e.GrainBytes())), at*SectorSize))
	must(e.Prepare(1, n))
	must(e.Set(1, n, uint32(at)))
	frozen := e.Freeze()
	must(errors.Join(e.SyncData(), frozen.WriteTables()))
	_, err = frozen.SyncTables()
	must(err)
	frozen.Thaw()
	must(l.CloseClean())
	file, err := d.Open("disk-delta.vmdk", fsx.ReadOnly)
	must(err)
	info, err := file.Stat()
	must(err)
	image = make([]byte, info.Size)
	must(errors.Join(readFull(file, image, 0), file.Close()))
	return l.Descriptor().Text(), image
}

// FuzzCOWD is FuzzSparse for COWD extents.
func FuzzCOWD(f *testing.F) {
	text, image := fuzzCOWD(f)
	f.Add(uint16(0), []byte("KDMV"))
	f.Add(uint16(12), []byte{0xff, 0xff, 0xff, 0xff})
	f.Add(uint16(16), []byte{1})
	f.Add(uint16(20), []byte{0xff, 0xff, 0xff, 0x7f, 0xff, 0xff})
	f.Add(uint16(28), []byte{0})
	f.Add(uint16(1648), []byte{1})
	f.Add(uint16(2048), []byte{1, 0, 0, 0})
	f.Add(uint16(2560), []byte{5, 0, 0, 0, 5, 0, 0, 0})
	f.Fuzz(func(t *testing.T, at uint16, change []byte) {
		defer vmdktest.Bounded(t)
		d := sim.New(sim.Options{}).Root()
		b := bytes.Clone(image)
		copy(b[min(int(at), len(b)):], change)
		for name, b := range map[string][]byte{"disk.vmdk": text, "disk-delta.vmdk": b} {
			if err := writeFile(d, name, b); err != nil {
				t.Fatal(err)
			}
		}
		useWhatever(t, d)
	})
}
