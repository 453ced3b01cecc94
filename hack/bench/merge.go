package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// MeasureMerge times what consolidation copies, in both directions, beside `qemu-img commit`. The chain is a base, a link and
// an empty head; base and link have the same amount of data, in different places, so that every way copies the same.
func measureMerge(ctx context.Context, b *bench) (part, error) {
	amount, rounds := int64(1<<30), 3
	if b.quick {
		amount, rounds = 16<<20, 1
	}
	p := part{title: "Consolidation", about: fmt.Sprintf("Two links become one; %d MiB are to be copied, from files that are not in the page "+
		"cache, and are durable at the end. `qemu-img commit -d` does the same as *down*. Median of %d.", amount>>20, rounds)}
	times := map[string][]time.Duration{}
	for range rounds {
		for _, way := range []string{"down", "up", "commit"} {
			d, err := b.mergeOnce(ctx, way, amount)
			if err != nil {
				return p, fmt.Errorf("%s: %w", way, err)
			}
			times[way] = append(times[way], d)
		}
	}
	at := func(way string) value { return value{speed(amount, median(times[way])), "MiB/s"} }
	p.rows = []row{
		{"merge down, into the lower link", at("down"), "qemu-img commit", at("commit"), nil},
		{"merge up, into the upper link", at("up"), "qemu-img commit", at("commit"), nil},
	}
	return p, nil
}

func (b *bench) mergeOnce(ctx context.Context, way string, amount int64) (d time.Duration, err error) {
	pl, err := b.place()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, pl.leave()) }()
	refs, err := pl.twoLinks(ctx, 4*amount, amount)
	if err != nil {
		return 0, err
	}
	if err := pl.cold(); err != nil {
		return 0, err
	}
	if way == "commit" {
		return timed(func() error {
			return errors.Join(pl.qemuImg(ctx, "commit", "-q", "-d", "-f", "vmdk", refs[1].Name), pl.durable("disk-flat"))
		})
	}
	c, err := pl.open(refs)
	if err != nil {
		return 0, err
	}
	d, err = timed(func() error { return merge(ctx, c, chain.Direction(way), nil, amount) })
	return d, errors.Join(err, c.Close())
}

// TwoLinks makes a base, a link on it, and an empty head, the first two with amount bytes of data in different places.
func (p *place) twoLinks(ctx context.Context, size, amount int64) ([]chain.Ref, error) {
	base, err := p.newBase(ctx, size)
	refs := []chain.Ref{base}
	for i := range 2 {
		if err == nil {
			err = p.fill(ctx, refs, int64(i)*fillChunk, amount)
		}
		if err == nil {
			refs, err = p.child(ctx, refs, size)
		}
	}
	return refs, err
}

// Merge merges the lowest two links of c, and fails if that copied less than it should have.
func merge(ctx context.Context, c *chain.Chain, d chain.Direction, pace func(context.Context, int64) error, atLeast int64) error {
	var copied int64
	err := c.Merge(ctx, chain.MergeParams{Lower: 0, Direction: d, Pace: pace,
		Progress: func(done, _ int64) { copied = done },
		Commit:   func(chain.Identity) error { return nil }})
	if err == nil && copied < atLeast {
		err = fmt.Errorf("the merge copied %d bytes, not %d: nothing was measured", copied, atLeast)
	}
	return err
}
