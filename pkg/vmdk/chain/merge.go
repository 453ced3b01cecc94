package chain

import (
	"context"
	"errors"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// merging is a merge under way. It does not change while requests run.
type merging struct {
	lower  int // index of the lower link
	target int // index of the link that is written: lower or lower+1
	dir    Direction
	head   bool // the upper link is the head
}

// Merge makes one link of two neighbours while the disk is in use, the head included. What the disk reads stays the same.
//
// A nil error means that p.Commit has succeeded and the descriptors say so. After an error:
//   - p.Commit was not called, or has failed: the chain goes on with its old links; what was copied stays, and the next
//     Merge in the same direction does what is left. A lower link that had to grow for a merge down stays as large as the
//     upper one. When ctx ends, Merge stops within one piece of copying and returns its cause.
//   - p.Commit has succeeded: the merge is done, but descriptors are behind; the next Snapshot or Merge brings them up, or
//     Rebind when the chain is closed.
//   - fault.Poisoned: the disk must be opened again.
//
// The files of the link that is gone are closed when Merge returns and left for the caller to remove.
//
//  1. Open the target for writing; down: make it as large as the upper link. [A crash from here to 4 leaves it unclean, and
//     perhaps larger: Ref.Mend. Nobody reads what was copied, or it is what was there.]
//  2. Copy, piece by piece, each a request of its own.
//  3. Commit, so that little is left for 4.
//  4. With requests kept out: commit, p.Commit, and the links are the new ones. [From here on the merge is done.]
//  5. Descriptors: see rebindMerged. [A crash until they are durable: Rebind before the chain is opened.]
//  6. A target that is no head is marked clean and opened read-only.
func (c *Chain) Merge(ctx context.Context, p MergeParams) error {
	if c.o.ReadOnly {
		return fault.New(fault.ReadOnly, "open it for writing", "disk %s is open read-only", c.head.Name)
	}
	ctx, done, err := c.beginChange(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := c.checkBoundary(p.Lower); err != nil {
		return err
	}
	if p.Direction != Down && p.Direction != Up {
		return fault.New(fault.Invalid, "", "%q is no direction of a merge", p.Direction)
	}
	lower, upper := c.links[p.Lower].Name, c.links[p.Lower+1].Name
	return fault.Wrap(c.merge(ctx, p), "merge %s and %s %s", lower, upper, p.Direction)
}

func (c *Chain) merge(ctx context.Context, p MergeParams) error {
	if err := c.catchUp(); err != nil {
		return err
	}
	m, err := c.beginMerge(ctx, p)
	if err != nil {
		return err
	}
	if err := c.copyAll(ctx, m, p); err != nil {
		return errors.Join(err, c.giveUp(m))
	}
	gone, merged, err := c.finish(m, p)
	if err != nil {
		return errors.Join(err, c.giveUp(m))
	}
	c.resumeAt = resume{}
	err = errors.Join(c.rebindMerged(m, gone, merged), gone.Close())
	if i := p.Lower; i < len(c.links)-1 {
		err = errors.Join(err, c.retire(i))
	}
	return err
}

// beginMerge is step 1.
func (c *Chain) beginMerge(ctx context.Context, p MergeParams) (*merging, error) {
	m := &merging{lower: p.Lower, target: p.Lower, dir: p.Direction, head: p.Lower+2 == len(c.links)}
	if m.dir == Up {
		m.target++
	}
	for _, l := range c.links[m.lower : m.lower+2] {
		for _, e := range l.Extents() {
			if e.Kind == vmdk.Zero {
				return nil, fault.New(fault.Unsupported, "convert the disk", "%s has a ZERO extent", l.Name)
			}
		}
	}
	if m.head { // its content ID is final: what replaces it has it from the first moment
		if err := c.enterWrite(0, 0); err != nil {
			return nil, err
		}
		c.leave()
	}
	if m.target == len(c.links)-1 {
		return m, c.setMerging(m, nil)
	}
	old := c.links[m.target]
	next, err := c.openTarget(ctx, m)
	if err != nil {
		return nil, err
	}
	if err := c.setMerging(m, next); err != nil {
		return nil, errors.Join(err, next.Close())
	}
	return m, old.Close()
}

// openTarget opens the target for writing, mended and large enough.
func (c *Chain) openTarget(ctx context.Context, m *merging) (*vmdk.Link, error) {
	old := c.links[m.target]
	l, err := c.openAgain(old, true)
	if err != nil {
		return nil, err
	}
	if l.Unclean() {
		err = l.Recover()
	}
	if size := c.links[m.lower+1].Size(); err == nil && l.Size() < size {
		err = l.Grow(ctx, vmdk.GrowParams{Capacity: size, Format: c.o.Format, Resume: true})
	}
	if err == nil {
		return l, nil
	}
	err = errors.Join(err, l.Close())
	if c.o.Locks {
		err = errors.Join(err, old.LockAs(fsx.LockRead))
	}
	return nil, err
}

// setMerging lets requests know of the merge; target, if not nil, takes its link's place.
func (c *Chain) setMerging(m *merging, target *vmdk.Link) error {
	c.gate.Lock()
	defer c.gate.Unlock()
	if err := c.alive(); err != nil {
		return err
	}
	if target != nil {
		c.setLinks(c.with(m.target, target))
	}
	c.merging = m
	return nil
}

// draining tells that the head is being emptied into the link below it; needs the gate.
func (c *Chain) draining() bool { return c.merging != nil && c.merging.head && c.merging.dir == Down }

// keepsPlaces tells that grains of link i must not lose their place, because what is below it will be another link, in
// which they may have content. Needs the gate.
func (c *Chain) keepsPlaces(i int) bool {
	return c.merging != nil && c.merging.dir == Up && c.merging.target == i && c.merging.lower > 0
}

// commitTarget makes the target's changes durable where flushes do not; needs the gate. Nobody frees grains or reads changed
// ones there but the merge.
func (c *Chain) commitTarget() error {
	m := c.merging
	if m == nil || c.live(m.target) {
		return nil
	}
	links := c.links[m.target : m.target+1]
	if err := store(links, freeze(links)); err != nil {
		return c.fail(err)
	}
	return nil
}

// commitBoth makes everything durable, in a request of its own.
func (c *Chain) commitBoth() error {
	c.gate.RLock()
	err := c.alive()
	if err == nil {
		err = c.commitTarget()
	}
	if err == nil {
		err = c.commit()
	}
	c.gate.RUnlock()
	if err == nil {
		c.reclaim()
	}
	return err
}

// giveUp ends a merge that has not come to its commit: everything is made durable, the target is a parent again, unless it
// is the head.
func (c *Chain) giveUp(m *merging) error {
	err := c.commitBoth()
	c.gate.Lock()
	if err == nil {
		err = c.alive()
	}
	if err == nil {
		err = errors.Join(c.commitTarget(), c.commit()) // no pending entry names the lower link any more
	}
	c.merging = nil
	c.gate.Unlock()
	if err == nil && m.target < len(c.links)-1 {
		err = c.retire(m.target)
	}
	return err
}

// finish is steps 3 and 4. It returns the link that is gone.
func (c *Chain) finish(m *merging, p MergeParams) (gone *vmdk.Link, merged Identity, err error) {
	if err := c.commitBoth(); err != nil {
		return nil, merged, err
	}
	c.gate.Lock()
	defer c.gate.Unlock()
	if err := c.alive(); err != nil {
		return nil, merged, err
	}
	if err := errors.Join(c.commitTarget(), c.commit()); err != nil {
		return nil, merged, err
	}
	merged = c.identity(m)
	if p.Commit != nil {
		if err := p.Commit(merged); err != nil {
			if errors.Is(err, fault.Poisoned) {
				err = c.fail(err)
			}
			return nil, merged, err
		}
	}
	stays := c.links[m.target]
	gone = c.links[2*m.lower+1-m.target]
	links := append([]*vmdk.Link(nil), c.links[:m.lower]...)
	links = append(links, stays)
	c.setLinks(append(links, c.links[m.lower+2:]...))
	c.merging = nil
	return gone, merged, nil
}

// identity is what the link that stays will be: the upper link's content in the lower one's place.
func (c *Chain) identity(m *merging) Identity {
	lower, upper := c.links[m.lower].Descriptor(), c.links[m.lower+1].Descriptor()
	stays := c.links[m.target]
	id := Identity{Name: stays.Name, CID: upper.CID(), LongID: upper.LongContentID(), ParentCID: lower.ParentCID(),
		Size: c.links[m.lower+1].Size(), Type: stays.Descriptor().Type()}
	if lower.IsChild() {
		id.Parent = lower.ParentHint()
	} else if u, ok := lower.UUID(); ok {
		id.UUID = u.String()
	}
	for _, e := range stays.Extents() {
		id.Extents = append(id.Extents, e.Name)
	}
	return id
}
