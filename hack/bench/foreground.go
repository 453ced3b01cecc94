package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// What hostd lets a consolidation copy per second: of a disk that is idle, and of one whose user is at work (pkg/host/local,
// pace.go), as it is here.
const (
	idleRate = 200 << 20
	busyRate = idleRate / 8
)

// A pressure is a merge that runs beside a load.
type pressure struct {
	what string
	live bool // of the head itself, not of two links below it
	rate int64
}

var pressures = []pressure{
	{"merge below the head, 25 MiB/s (hostd beside a load)", false, busyRate},
	{"merge of the live head, 25 MiB/s (hostd beside a load)", true, busyRate},
	{"merge below the head, 200 MiB/s (hostd without)", false, idleRate},
	{"merge of the live head, 200 MiB/s (hostd without)", true, idleRate},
	{"merge below the head, no limit", false, 0},
}

// MeasureForeground compares a load's writes without a merge and during one. The load overwrites what the head has allocated,
// so that the merge is all that differs.
func measureForeground(ctx context.Context, b *bench) (part, error) {
	most := int64(2 << 30)
	if b.quick {
		most = 16 << 20
	}
	p := part{title: "What consolidation does to the foreground", about: fmt.Sprintf("Random 4 KiB writes from %d writers, past the page cache, "+
		"in a head on a chain of which two links become one meanwhile (up to %d MiB to be copied), beside the same load just before. "+
		"hostd copies 200 MiB per second at most, and an eighth of it while the disk has more than 200 requests per second.", writers, most>>20)}
	for _, x := range pressures {
		amount := most
		if x.rate > 0 {
			amount = min(most, 12*x.rate) // some twelve seconds
		}
		without, during, err := b.squeeze(ctx, x, amount)
		if err != nil {
			return p, fmt.Errorf("%s: %w", x.what, err)
		}
		for _, q := range []float64{50, 99} {
			p.rows = append(p.rows, row{fmt.Sprintf("write p%.0f, %s", q, x.what), duration(percentile(during.latencies, q)),
				"no merge", duration(percentile(without.latencies, q)), nil})
		}
		p.rows = append(p.rows, row{"writes, " + x.what, value{during.rate(), "/s"}, "no merge", value{without.rate(), "/s"}, nil})
	}
	return p, nil
}

func (b *bench) squeeze(ctx context.Context, x pressure, amount int64) (without, during window, err error) {
	pl, err := b.place()
	if err != nil {
		return without, during, err
	}
	defer func() { err = errors.Join(err, pl.leave()) }()
	size := 4 * amount
	refs, err := pl.twoLinks(ctx, size, amount)
	if err != nil {
		return without, during, err
	}
	if x.live {
		refs = refs[:2]
	}
	c, err := pl.open(refs)
	if err != nil {
		return without, during, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	buf := make([]byte, grain)
	for n := range int64(hotGrains) {
		if _, err := c.WriteAt(buf, hotGrain(size, n)); err != nil {
			return without, during, err
		}
	}
	l, err := startLoad(c, size, b.seed)
	if err != nil {
		return without, during, err
	}
	calm := b.wait(ctx, l)
	from := l.now()
	err = merge(ctx, c, chain.Down, cli.Pace(x.rate), amount)
	to := l.now()
	ops, lerr := l.finish()
	if err = errors.Join(err, lerr); err != nil {
		return without, during, err
	}
	return look(ops, calm, from), look(ops, from, to), nil
}

// Wait lets the load run for a while and returns the moment from which on it counts.
func (b *bench) wait(ctx context.Context, l *load) time.Duration {
	warm, long := 500*time.Millisecond, 3*time.Second
	if b.quick {
		warm, long = 10*time.Millisecond, 100*time.Millisecond
	}
	pause(ctx, warm)
	begin := l.now()
	pause(ctx, long)
	return begin
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
