package chain

import (
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// takeOver applies what the dead holder had acknowledged. Its grains, and those of writes it never answered, lie before
// the end of the file, where the allocator begins.
func (c *Chain) takeOver() error {
	if c.o.Pending == nil {
		for _, e := range c.head.Extents() {
			if e.Kind == vmdk.Sparse {
				return fault.New(fault.Invalid, "give the table of the dead process", "a sparse disk cannot be taken over without its pending table")
			}
		}
		return nil
	}
	// The head may have been drained into the link below, and what was written there in place is in no table: it must be
	// durable before this process promises that a flush was done, or that a grain of the head is gone.
	if n := len(c.links); n > 1 {
		if err := c.links[n-2].Sync(); err != nil {
			return err
		}
	}
	entries := c.o.Pending.Load()
	merge, err := c.takeOverMerge(entries)
	if err != nil {
		return err
	}
	for _, p := range entries {
		if err := c.apply(p); err != nil {
			return fault.Wrap(err, "pending entry %+v", p)
		}
	}
	if !merge {
		return nil
	}
	// The merge is over. Everything is durable before an entry of the lower link is forgotten, and it is a parent again.
	if err := c.commit(); err != nil {
		return err
	}
	lower := c.merging.lower
	c.merging = nil
	return c.retire(lower)
}

// takeOverMerge opens the link below the head for writing if the dead process was draining the head into it.
func (c *Chain) takeOverMerge(entries []PendingEntry) (bool, error) {
	lower := len(c.links) - 2
	if lower < 0 || !slices.ContainsFunc(entries, func(p PendingEntry) bool { return int(p.Link) == lower }) {
		return false, nil
	}
	l, err := c.openAgain(c.links[lower], true)
	if err != nil {
		return false, err
	}
	if err := c.put(lower, l); err != nil {
		return false, err
	}
	c.merging = &merging{lower: lower, target: lower, dir: Down, head: true}
	return true, nil
}

func (c *Chain) apply(p PendingEntry) error {
	if int(p.Link) >= len(c.links) || !c.live(int(p.Link)) {
		return fault.New(fault.Damaged, "check the disk", "it is for another disk: the head is link %d", len(c.links)-1)
	}
	ext := c.links[p.Link].Extents()
	if int(p.Extent) >= len(ext) || ext[p.Extent].Kind != vmdk.Sparse {
		return fault.New(fault.Damaged, "check the disk", "it is for another disk: %s has %d extents", c.links[p.Link].Name, len(ext))
	}
	e := ext[p.Extent]
	if err := e.CheckEntry(int64(p.Grain), p.Sector); err != nil {
		return err
	}
	if err := e.Begin(); err != nil {
		return err
	}
	if err := e.Prepare(int64(p.Grain), 1); err != nil {
		return err
	}
	return e.Set(int64(p.Grain), 1, p.Sector)
}
