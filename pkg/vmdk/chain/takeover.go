package chain

import (
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
	for _, p := range c.o.Pending.Load() {
		if err := c.apply(p); err != nil {
			return fault.Wrap(err, "pending entry %+v", p)
		}
	}
	return nil
}

func (c *Chain) apply(p PendingEntry) error {
	ext := c.head.Extents()
	if int(p.Link) != len(c.links)-1 || int(p.Extent) >= len(ext) || ext[p.Extent].Kind != vmdk.Sparse {
		return fault.New(fault.Damaged, "check the disk", "it is for another disk: the head is link %d with %d extents", len(c.links)-1, len(ext))
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
