package vmdk

import (
	"bytes"
	"context"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/vmdktest"
)

// FuzzRepair: whatever is wrong with a disk of any kind, it is checked and repaired without a panic, a repair is never worse
// than the disk, and undo brings every byte back.
func FuzzRepair(f *testing.F) {
	t := &testing.T{}
	images := []*image{newImage(t, format{"", CreateParams{Type: MonolithicSparse, Capacity: 5<<20 + 512, GrainSectors: 8}}),
		newImage(t, format{"", CreateParams{Type: TwoGbMaxExtentSparse, Capacity: 3<<20 + 512, ExtentSize: 2 << 20, GrainSectors: 16,
			Parent: &Parent{Hint: "base.vmdk", CID: 0x1234}}}),
		cowdImage(t, 1, true), cowdImage(t, 8, false), streamImage(t, false), streamImage(t, true), seImage(t)}
	f.Add(uint8(0), uint32(12), []byte{0, 0, 0, 0, 1}, uint32(56), []byte{0xff})
	f.Add(uint8(1), uint32(7*512), []byte{1, 0, 0, 0, 128}, uint32(72), []byte{1})
	f.Add(uint8(2), uint32(28), []byte{1, 0}, uint32(2048), []byte{5, 0, 0, 0})
	f.Add(uint8(3), uint32(16), []byte{0}, uint32(1648), []byte{1})
	f.Add(uint8(4), uint32(56), []byte{0xff, 0xff}, uint32(48*512), []byte{1, 2, 3})
	f.Add(uint8(5), uint32(48*512+8), []byte{0xff, 0xff, 0xff, 0xff}, uint32(20), []byte{16})
	f.Add(uint8(6), uint32(128), []byte{1}, uint32(512+24), []byte{1})
	f.Fuzz(func(t *testing.T, which uint8, at uint32, change []byte, at2 uint32, change2 []byte) {
		defer vmdktest.Bounded(t)
		im := images[int(which)%len(images)].clone()
		im.t = t
		name := imageName
		for n := range im.files { // the extent, if it is another file
			if n != imageName && (name == imageName || n < name) {
				name = n
			}
		}
		file := im.files[name]
		copy(file[min(int(at), len(file)):], change)
		copy(file[min(int(at2), len(file)):], change2)
		d := im.dir()
		if _, err := Check(context.Background(), d, imageName); err != nil {
			t.Fatalf("check: %v", err)
		}
		r, err := Repair(context.Background(), d, imageName, all)
		if err != nil {
			if k := fault.KindOf(err); k != fault.Precondition && k != fault.Exhausted {
				t.Fatalf("repair: %v", err)
			}
			return
		}
		if r.Undo == "" {
			return
		}
		if err := UndoRepair(d, r.Undo); err != nil {
			t.Fatalf("undo: %v", err)
		}
		for n, b := range im.files {
			if !bytes.Equal(slurp(t, d, n), b) {
				t.Fatalf("undo left %s changed", n)
			}
		}
	})
}
