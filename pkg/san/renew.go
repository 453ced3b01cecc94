package san

import (
	"context"
	"errors"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Renew asks for one more lease. It tells whether the server wants the map back. A server that cannot be reached is tried again
// by the next call; one that says that the grant has ended takes the map away at once.
func (d *Mapper) Renew(ctx context.Context) (recalled bool, err error) {
	sent := d.clock.Now()
	r, err := d.client.Renew(ctx, d.m.Grant, d.m.Generation, d.m.Digest)
	d.mu.Lock()
	defer d.mu.Unlock()
	if errors.Is(err, fault.NotFound) {
		d.drop(fault.New(fault.Unavailable, "Get a new map, or use another transport.", "the block map of %s was taken back: %w", d.m.Volume, err))
		return false, d.gone
	}
	if err != nil {
		return false, err
	}
	if d.gone != nil {
		return false, d.gone
	}
	if d.clock.Now() < d.until || sent < d.until { // one that came too late finds no map
		d.until = max(d.until, sent+min(r.Lease, d.m.Lease))
	}
	d.recalled = d.recalled || r.Recalled
	d.tell()
	return d.recalled, nil
}

// Run renews until the server wants the map back (nil), the map is gone, or ctx ends. Its owner then drains the disk and
// returns the map, or goes on without.
func (d *Mapper) Run(ctx context.Context) error {
	for {
		d.mu.Lock()
		left := d.until - d.clock.Now()
		d.mu.Unlock()
		wait := min(d.m.Lease/3, max(left-d.m.MaxIO, d.m.MaxIO/4))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.dead:
			return d.Gone()
		case <-d.clock.After(wait):
		}
		if recalled, err := d.Renew(ctx); recalled {
			return nil
		} else if err != nil && d.Gone() != nil {
			return err
		}
	}
}

// Gone is why the mapper has no map any more, nil while it has.
func (d *Mapper) Gone() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.gone
}

// Return gives the map back:
//
//  1. No new request is let through; those under way end.
//  2. The LUN is flushed. (Node dies: the server ends the grant; what was flushed is there.)
//  3. The server is told. (No answer: it ends the grant when its time is over.)
//
// Without a flush it is not told: nobody may take the disk for whole.
func (d *Mapper) Return(ctx context.Context) error {
	d.mu.Lock()
	failed := d.gone
	d.drop(fault.New(fault.Unavailable, "", "the block map of %s was given back", d.m.Volume))
	for d.active > 0 {
		changed := d.changed
		d.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return fault.New(fault.Timeout, "", "requests on %s do not end: %w", d.m.Volume, ctx.Err())
		}
		d.mu.Lock()
	}
	d.mu.Unlock()
	if failed != nil {
		return failed
	}
	if d.m.Mode == ReadWrite {
		for _, l := range d.luns {
			if err := l.Datasync(); err != nil {
				return fault.Wrap(err, "flush %s", d.m.Volume)
			}
		}
	}
	if d.client == nil {
		return nil
	}
	return d.client.Return(ctx, d.m.Grant, d.m.Generation)
}
