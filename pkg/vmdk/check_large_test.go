package vmdk

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
)

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// fullDisk makes a disk of which every grain is stored, as far as the tables know: the grains themselves are a hole.
func fullDisk(tb testing.TB, path string, capacity int64) {
	tb.Helper()
	d, err := fsx.OpenRoot(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer d.Close()
	if _, err := Create(context.Background(), d, "disk.vmdk", CreateParams{Type: MonolithicSparse, Capacity: capacity}); err != nil {
		tb.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(path, "disk.vmdk"), os.O_RDWR, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, SectorSize)
	if _, err := f.ReadAt(b, 0); err != nil {
		tb.Fatal(err)
	}
	h, err := decodeHeader(b)
	if err != nil {
		tb.Fatal(err)
	}
	grains := int64(h.capacity) / int64(h.grain)
	tables := make([]byte, h.numGTs()*h.gtSectors()*SectorSize)
	for g := range grains {
		binary.LittleEndian.PutUint32(tables[g*4:], uint32(int64(h.overHead)+g*int64(h.grain)))
	}
	for _, at := range []uint64{h.rgdOff, h.gdOff} {
		if _, err := f.WriteAt(tables, (int64(at)+gdSectors(h.numGTs()))*SectorSize); err != nil {
			tb.Fatal(err)
		}
	}
	if err := f.Truncate((int64(h.overHead) + grains*int64(h.grain)) * SectorSize); err != nil {
		tb.Fatal(err)
	}
}

// TestCheckOfFullDisk: 1 TiB in 64 KiB grains, 32,768 tables twice, is checked in little memory; how long it takes is logged.
func TestCheckOfFullDisk(t *testing.T) {
	size := int64(1 << 40)
	if testing.Short() || raceDetector {
		size = 1 << 36
	}
	path := t.TempDir()
	fullDisk(t, path, size)
	d, err := fsx.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := cpuTime()
	rep, err := Check(context.Background(), d, "disk.vmdk")
	took := cpuTime() - began // the machine may have other work
	runtime.ReadMemStats(&after)
	if err != nil || len(rep.Problems) > 0 || rep.Allocated != size {
		t.Fatalf("%+v %v", rep, err)
	}
	t.Logf("%v, heap %d MiB", took, (after.HeapSys-min(after.HeapSys, before.HeapSys))>>20)
	if after.HeapSys-min(after.HeapSys, before.HeapSys) > 256<<20 {
		t.Errorf("the heap grew by %d MiB", (after.HeapSys-before.HeapSys)>>20)
	}
}
