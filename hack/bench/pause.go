package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Target is an attached disk that snapshots can be taken of.
type target interface {
	io.WriterAt
	snapshot(ctx context.Context, name string) error
	close() error
}

// A way is how a load reaches a disk.
type way struct {
	name string
	make func(ctx context.Context, b *bench, size int64) (target, error)
}

// Ways are those that this machine has; why says what is missing.
func (b *bench) ways() (all []way, why string) {
	all = []way{{"engine", newEngineTarget}}
	if b.quick {
		return all, "the run is a quick one"
	}
	if why := noDevices(); why != "" {
		return all, why
	}
	return append(all, way{"loop device", newDeviceTarget}), ""
}

// NoDevices says why there can be no loop devices over FUSE files here; "": there can.
func noDevices() string {
	if os.Geteuid() != 0 {
		return "making loop devices needs root"
	}
	for _, p := range []string{"/dev/loop-control", "/dev/fuse"} {
		if _, err := os.Stat(p); err != nil {
			return err.Error()
		}
	}
	return ""
}

// PerDisk is how many snapshots one disk gets: a chain has 32 links at most.
const perDisk = 25

// Pauses are the longest writes, in milliseconds' worth of durations: one for each snapshot, and one for as long a time
// right before it.
type pauses struct{ with, without, call []time.Duration }

// MeasurePause takes snapshots under a load and looks at the longest write that each met: that is what a guest feels.
func measurePause(ctx context.Context, b *bench) (part, error) {
	n := 100
	if b.quick {
		n = 2
	}
	p := part{title: "The pause of a snapshot", about: fmt.Sprintf("The longest of the random 4 KiB writes of %d writers (past the page cache, "+
		"%d grains spread over a range) that were under way during a snapshot, over %d snapshots, up to %d on one thin disk: every grain is "+
		"written anew after each. The range is the first GiB of the disk, where the grains belong to 32 grain tables, or (*all over*) the whole "+
		"disk, where each of them has its own, and a flush that much more to write. *engine* is the engine and the datastore in one process; *loop device* is the whole way: block device, FUSE, "+
		"worker, and the commit by another process. *calm* is as long a time right before each.", writers, hotGrains, n, perDisk)}
	all, why := b.ways()
	if why != "" {
		p.about += " The loop device is left out here: " + why + "."
	}
	for _, w := range all {
		var small, large, wide pauses
		for left := n; left > 0; left -= perDisk { // in turn: what else the machine does meets both
			for _, x := range []struct {
				size, span int64
				all        *pauses
			}{{1 << 30, 1 << 30, &small}, {1 << 40, 1 << 30, &large}, {1 << 40, 1 << 40, &wide}} {
				if err := b.pauses(ctx, w, x.size, x.span, min(left, perDisk), x.all); err != nil {
					return p, fmt.Errorf("%s, %d GiB: %w", w.name, x.size>>30, err)
				}
			}
		}
		for _, q := range []float64{50, 99} {
			s, l, a := percentile(small.with, q), percentile(large.with, q), percentile(wide.with, q)
			p.rows = append(p.rows,
				row{fmt.Sprintf("pause p%.0f, %s, 1 GiB", q, w.name), duration(s), "calm, 1 GiB", duration(percentile(small.without, q)), nil},
				row{fmt.Sprintf("pause p%.0f, %s, 1 TiB", q, w.name), duration(l), "pause, 1 GiB", duration(s), nil},
				row{fmt.Sprintf("pause p%.0f, %s, 1 TiB, all over", q, w.name), duration(a), "pause, 1 GiB", duration(s), nil})
		}
		p.rows = append(p.rows, row{fmt.Sprintf("whole snapshot p50, %s, 1 TiB", w.name), duration(median(large.call)),
			"1 GiB", duration(median(small.call)), nil})
	}
	return p, nil
}

// Pauses takes n snapshots of one disk, whose first span bytes are written.
func (b *bench) pauses(ctx context.Context, w way, size, span int64, n int, all *pauses) (err error) {
	t, err := w.make(ctx, b, size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	l, err := startLoad(t, span, b.seed)
	if err != nil {
		return err
	}
	type moment struct{ from, to time.Duration }
	var taken []moment
	for i := range n {
		// Long enough that what the last snapshot made the load do is over, and a calm time as long as a snapshot has been.
		pause(ctx, 200*time.Millisecond)
		from := l.now()
		if err = t.snapshot(ctx, fmt.Sprintf("snapshot-%d", i)); err != nil {
			break
		}
		taken = append(taken, moment{from, l.now()})
	}
	ops, lerr := l.finish()
	if err = errors.Join(err, lerr, ctx.Err()); err != nil {
		return err
	}
	for _, m := range taken {
		d := m.to - m.from
		all.call = append(all.call, d)
		all.with = append(all.with, look(ops, m.from, m.to).longest)
		all.without = append(all.without, look(ops, max(0, m.from-d), m.from).longest)
	}
	return nil
}
