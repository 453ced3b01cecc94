package chain

import (
	"context"
	"errors"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// Grow makes the disk size bytes large while it is in use. The new space is made beside the requests, which wait only
// while the tables and the descriptor change. A disk that is as large already stays as it is. After an error the disk has
// its old size, and Grow may be repeated.
func (c *Chain) Grow(ctx context.Context, size int64) error {
	return c.GrowWith(ctx, vmdk.GrowParams{Capacity: size, Format: c.o.Format, Resume: true})
}

// GrowWith is Grow with a choice of format and extent size.
//
//  1. Make the new space: behind the end of flat files, in new extents. Nobody sees it yet.
//  2. With requests kept out: commit, so that a crash from here on has only the growth to explain.
//  3. Growth.Commit, whose commit point is the descriptor.
//  4. The new size is what requests see.
func (c *Chain) GrowWith(ctx context.Context, p vmdk.GrowParams) error {
	if c.o.ReadOnly {
		return fault.New(fault.ReadOnly, "open it for writing", "disk %s is open read-only", c.head.Name)
	}
	ctx, done, err := c.beginChange(ctx)
	if err != nil {
		return err
	}
	defer done()
	if p.Capacity <= c.Size() {
		return nil
	}
	// Preparing may take hours, and whoever wants the gate meanwhile would stop all requests.
	g, err := c.head.PrepareGrow(ctx, p)
	if err != nil {
		return err
	}
	c.gate.Lock()
	defer c.gate.Unlock()
	if err := c.alive(); err != nil {
		return errors.Join(err, g.Undo())
	}
	if err := c.commit(); err != nil {
		return errors.Join(err, g.Undo())
	}
	if err := g.Commit(); err != nil {
		return err
	}
	c.size.Store(c.head.Size())
	return nil
}

// beginChange begins a growth, snapshot or merge: one at a time, and none outlives the chain. done must follow.
func (c *Chain) beginChange(ctx context.Context) (_ context.Context, done func(), err error) {
	c.changeMu.Lock()
	if err := c.enter(0, 0); err != nil {
		c.changeMu.Unlock()
		return nil, nil, err
	}
	c.leave()
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.life, func() {
		cancel(fault.New(fault.Precondition, "open it again", "the disk is being closed"))
	})
	return ctx, func() {
		stop()
		cancel(nil)
		c.changeMu.Unlock()
	}, nil
}
