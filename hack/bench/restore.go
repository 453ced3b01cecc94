package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

var capacities = []struct {
	name string
	size int64
}{{"1 GiB", 1 << 30}, {"64 GiB", 64 << 30}, {"1 TiB", 1 << 40}}

// MeasureRestore times new disks made of old ones, of different capacities with the same data, and a full copy beside
// `qemu-img convert`.
func measureRestore(ctx context.Context, b *bench) (part, error) {
	rounds, copies, amount := 20, 3, int64(1<<30)
	if b.quick {
		rounds, copies, amount = 2, 1, 16<<20
	}
	p := part{title: "Restores and clones against capacity", about: fmt.Sprintf("A new disk from a snapshot, and from a detached disk, on the same "+
		"datastore, until it is committed; thin disks with the same data (%d grains). Median of %d. A full copy of %d MiB in a thin disk "+
		"four times as large, from files that are not in the page cache, durable at the end, is beside `qemu-img convert`; median of %d.",
		hotGrains, rounds, amount>>20, copies)}
	times, err := b.linkedCopies(ctx, rounds)
	if err != nil {
		return p, err
	}
	for i, c := range capacities {
		for _, kind := range []string{"restore", "clone"} {
			r := row{what: "linked " + kind + ", " + c.name, ours: duration(median(times[i][kind]))}
			if i > 0 {
				r.beside, r.theirs = capacities[0].name, duration(median(times[0][kind]))
			}
			p.rows = append(p.rows, r)
		}
	}
	full, err := b.fullCopies(ctx, amount, copies)
	p.rows = append(p.rows, full)
	return p, err
}

// LinkedCopies makes disks of disks, and of snapshots of them, of every capacity in turn: what else the machine does meets all
// of them. The result is by capacity and kind.
func (b *bench) linkedCopies(ctx context.Context, rounds int) (times []map[string][]time.Duration, err error) {
	var sources []*sourceDisk
	defer func() {
		for _, s := range sources {
			err = errors.Join(err, s.store.leave())
		}
	}()
	for _, c := range capacities {
		s, err := b.source(ctx, c.size)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		sources = append(sources, s)
		times = append(times, map[string][]time.Duration{})
	}
	for round := range rounds {
		for i, s := range sources {
			for kind, source := range map[string]host.Source{"restore": {Snapshot: s.snapshot}, "clone": {Disk: s.disk}} {
				t, err := timed(func() error {
					_, err := s.store.thin(ctx, fmt.Sprintf("%s-%d", kind, round), capacities[i].size, &source, host.CloneLinked)
					return err
				})
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", kind, capacities[i].name, err)
				}
				times[i][kind] = append(times[i][kind], t)
			}
		}
	}
	return times, nil
}

// SourceDisk is a detached disk with data and a snapshot.
type sourceDisk struct {
	store          *store
	disk, snapshot string // ids
}

func (b *bench) source(ctx context.Context, size int64) (_ *sourceDisk, err error) {
	s, err := b.store()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.leave())
		}
	}()
	d, err := s.thin(ctx, "source", size, nil, "")
	if err != nil {
		return nil, err
	}
	a, err := s.attach(ctx, d.ID)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, grain)
	for n := range int64(hotGrains) {
		buf[0] = byte(n) | 1
		if _, werr := a.WriteAt(buf, hotGrain(size, n)); err == nil {
			err = werr
		}
	}
	if err = errors.Join(err, a.detach(ctx)); err != nil {
		return nil, err
	}
	snap, err := s.volumes.Snapshot(ctx, host.SnapshotSpec{Name: "snapshot", Disk: d.ID}, time.Time{}, nil)
	return &sourceDisk{s, d.ID, snap.ID}, err
}

// FullCopies copies a disk with amount bytes of data, in turn with the peer.
func (b *bench) fullCopies(ctx context.Context, amount int64, rounds int) (r row, err error) {
	s, err := b.store()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.leave()) }()
	d, err := s.thin(ctx, "source", 4*amount, nil, "")
	if err != nil {
		return r, err
	}
	a, err := s.attach(ctx, d.ID)
	if err != nil {
		return r, err
	}
	if err := errors.Join(fillDisk(ctx, a, 0, amount), a.detach(ctx)); err != nil {
		return r, err
	}
	files := &place{path: s.file("volumes/" + d.ID)}
	var ours, theirs []time.Duration
	for i := range rounds {
		if err := files.cold(); err != nil {
			return r, err
		}
		var copied host.Disk
		t, err := timed(func() (err error) {
			copied, err = s.thin(ctx, fmt.Sprintf("full-%d", i), 4*amount, &host.Source{Disk: d.ID}, host.CloneFull)
			return err
		})
		if err != nil {
			return r, err
		}
		ours = append(ours, t)
		if err := errors.Join(s.volumes.Delete(ctx, copied.ID), files.cold()); err != nil {
			return r, err
		}
		if t, err = s.convert(ctx, files.file("disk.vmdk")); err != nil {
			return r, err
		}
		theirs = append(theirs, t)
	}
	return row{"full copy", value{speed(amount, median(ours)), "MiB/s"}, "qemu-img convert", value{speed(amount, median(theirs)), "MiB/s"}, nil}, nil
}

// Convert is the peer of a full copy.
func (s *store) convert(ctx context.Context, from string) (d time.Duration, err error) {
	const name = "copy.vmdk"
	d, err = timed(func() error {
		return errors.Join(s.qemuImg(ctx, "convert", "-f", "vmdk", "-O", "vmdk", "-o", "subformat=monolithicFlat", from, name), s.durable("copy"))
	})
	return d, errors.Join(err, s.remove("copy"))
}
