package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime/metrics"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// CheckFull times the check of a disk whose tables are full, and how much memory it takes.
func checkFull(ctx context.Context, b *bench, s engineSizes) (rows []row, err error) {
	p, err := b.place()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.leave()) }()
	if err := p.fullDisk(ctx, s.full); err != nil {
		return nil, err
	}
	var peak float64
	ours, err := timed(func() error {
		var err error
		peak, err = peakMemory(func() error {
			rep, err := vmdk.Check(ctx, p.dir, "disk.vmdk")
			if err == nil && (len(rep.Problems) > 0 || rep.Allocated != s.full) {
				err = fmt.Errorf("%d of %d bytes are allocated, %v", rep.Allocated, s.full, rep.Problems)
			}
			return err
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	what := fmt.Sprintf("check of %d GiB, full", s.full>>30)
	// The peer reads every table with a request of its own and stops nowhere: it is given a minute.
	limited, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	theirs, err := timed(func() error {
		out, err := exec.CommandContext(limited, "qemu-img", "check", "-f", "vmdk", p.file("disk.vmdk")).CombinedOutput()
		if err != nil && limited.Err() == nil {
			return fmt.Errorf("qemu-img check: %w\n%s", err, out)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	peer := "qemu-img check"
	if limited.Err() != nil {
		peer += " (ended after)"
	}
	return []row{
		{what, duration(ours), peer, duration(theirs), atMost(value{10000, "ms"})},
		{what + ", memory", value{peak / (1 << 20), "MiB"}, "", value{}, atMost(value{256, "MiB"})},
	}, ctx.Err()
}

// PeakMemory is by how many bytes the process's heap grew at most while do ran.
func peakMemory(do func() error) (float64, error) {
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	read := func() float64 {
		metrics.Read(heap)
		return float64(heap[0].Value.Uint64())
	}
	before := read()
	peak := before
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for tick := time.NewTicker(time.Millisecond); ; {
			select {
			case <-done:
				tick.Stop()
				return
			case <-tick.C:
				peak = max(peak, read())
			}
		}
	}()
	err := do()
	close(done)
	<-stopped
	return max(peak, read()) - before, err
}

// FullDisk makes a disk whose tables name a place for every grain. The grains are a hole.
func (p *place) fullDisk(ctx context.Context, capacity int64) (err error) {
	if _, err := vmdk.Create(ctx, p.dir, "disk.vmdk", vmdk.CreateParams{Type: vmdk.MonolithicSparse, Capacity: capacity}); err != nil {
		return err
	}
	f, err := os.OpenFile(p.file("disk.vmdk"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// Virtual Disk Format 5.0, "Hosted Sparse Extents": capacity at 12, grain 20, rgdOffset 48, gdOffset 56, overHead 64; in sectors.
	h := make([]byte, 72)
	if _, err := f.ReadAt(h, 0); err != nil {
		return err
	}
	field := func(at int) int64 { return int64(binary.LittleEndian.Uint64(h[at:])) }
	grainSectors, overHead := field(20), field(64)
	grains := capacity / (grainSectors * vmdk.SectorSize)
	var tables bytes.Buffer
	entry := make([]byte, 4)
	for g := range grains {
		binary.LittleEndian.PutUint32(entry, uint32(overHead+g*grainSectors))
		tables.Write(entry)
	}
	for _, dir := range []int64{field(48), field(56)} {
		// The directory's first entry is the first of the tables, which lie one behind the other.
		if _, err := f.ReadAt(entry, dir*vmdk.SectorSize); err != nil {
			return err
		}
		if _, err := f.WriteAt(tables.Bytes(), int64(binary.LittleEndian.Uint32(entry))*vmdk.SectorSize); err != nil {
			return err
		}
	}
	return f.Truncate((overHead + grains*grainSectors) * vmdk.SectorSize)
}
