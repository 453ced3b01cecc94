package chain

import (
	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

func (i Identity) place() vmdk.Place {
	return vmdk.Place{CID: i.CID, LongID: i.LongID, ParentCID: i.ParentCID, Parent: i.Parent, UUID: i.UUID}
}

// Rebind makes the descriptors of a closed chain say what they must, base first; those that do already are left alone. It
// is repeated after a crash, and needs that whatever records the new links, the manifest, is durable. Each descriptor is replaced as a whole; while some are new and some old, the content IDs of
// neighbours may disagree.
func Rebind(d fsx.Dir, want []Identity) error {
	for _, w := range want {
		if w.Size != 0 {
			info, err := infoOf(d, w.Name)
			if err != nil {
				return err
			}
			if info.Capacity != w.Size {
				return fault.New(fault.Damaged, "restore the descriptor", "%s has %d bytes, want %d", w.Name, info.Capacity, w.Size)
			}
		}
		if err := vmdk.Rebind(d, w.Name, w.place()); err != nil {
			return err
		}
	}
	return nil
}

// rebindMerged is step 5 of Merge: the link that stays has the upper one's content IDs and the lower one's parent, and the
// link above names it. Whoever follows the descriptors from the head finds the disk's content at every moment:
//
//  1. Down: the descriptor of the link that is gone becomes a second one of the merged link. [Until here it and the
//     extents it names are what they were, and below it nothing that it lacks has changed.]
//  2. The descriptor of the merged link. [The link above still comes by the other one.]
//  3. That of the link above.
func (c *Chain) rebindMerged(m *merging, gone *vmdk.Link, merged Identity) error {
	c.behind = []Identity{merged}
	if i := m.lower + 1; i < len(c.links) {
		c.behind = append(c.behind, Identity{Name: c.links[i].Name, ParentCID: merged.CID, Parent: merged.Name})
	}
	if m.dir == Down && !gone.Embedded() {
		if err := c.links[m.lower].Alias(gone.Name, merged.place()); err != nil {
			return err
		}
	}
	return c.catchUp()
}

// catchUp makes the descriptors right that an earlier merge could not change.
func (c *Chain) catchUp() error {
	c.startMu.Lock() // the first write changes the head's descriptor too
	defer c.startMu.Unlock()
	for _, id := range c.behind {
		for _, l := range c.links {
			if l.Name != id.Name {
				continue
			}
			if err := l.Rebind(id.place()); err != nil {
				return err
			}
		}
	}
	c.behind = nil
	return nil
}

func infoOf(d fsx.Dir, name string) (*vmdk.Info, error) {
	l, err := vmdk.Open(d, name, vmdk.Options{})
	if err != nil {
		return nil, err
	}
	return l.Info(), l.Close()
}
