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
	kinds := []string{"restore", "clone"}
	smallest := map[string]time.Duration{}
	for _, c := range capacities {
		times, err := b.copiesOf(ctx, c.size, rounds)
		if err != nil {
			return p, fmt.Errorf("%s: %w", c.name, err)
		}
		for _, kind := range kinds {
			r := row{what: "linked " + kind + ", " + c.name, ours: duration(median(times[kind]))}
			if first, ok := smallest[kind]; ok {
				r.beside, r.theirs = capacities[0].name, duration(first)
			} else {
				smallest[kind] = median(times[kind])
			}
			p.rows = append(p.rows, r)
		}
	}
	full, err := b.fullCopies(ctx, amount, copies)
	p.rows = append(p.rows, full)
	return p, err
}

// CopiesOf makes disks of a disk of size bytes and of a snapshot of it.
func (b *bench) copiesOf(ctx context.Context, size int64, rounds int) (times map[string][]time.Duration, err error) {
	s, err := b.store()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.leave()) }()
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
	if err != nil {
		return nil, err
	}
	times = map[string][]time.Duration{}
	for i := range rounds {
		for kind, source := range map[string]host.Source{"restore": {Snapshot: snap.ID}, "clone": {Disk: d.ID}} {
			t, err := timed(func() error {
				_, err := s.thin(ctx, fmt.Sprintf("%s-%d", kind, i), size, &source, host.CloneLinked)
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", kind, err)
			}
			times[kind] = append(times[kind], t)
		}
	}
	return times, nil
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
	return row{"full copy", value{speed(amount, median(ours)), "MiB/s"}, "qemu-img convert", value{speed(amount, median(theirs)), "MiB/s"}}, nil
}

// Convert is the peer of a full copy.
func (s *store) convert(ctx context.Context, from string) (d time.Duration, err error) {
	const name = "copy.vmdk"
	d, err = timed(func() error {
		return errors.Join(s.qemuImg(ctx, "convert", "-f", "vmdk", "-O", "vmdk", "-o", "subformat=monolithicFlat", from, name), s.durable("copy"))
	})
	return d, errors.Join(err, s.remove("copy"))
}
