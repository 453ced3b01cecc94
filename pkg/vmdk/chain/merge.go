package chain

import (
	"context"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// merging is a merge under way.
type merging struct {
	lower    int // index of the lower link
	target   int // index of the link that is written: lower or lower+1
	dir      Direction
	draining bool // the upper link is the head and is emptied into the lower one: both are written
}

// Merge makes one link of two neighbours while the disk is in use, the head included. What the disk reads stays the same.
//
// A nil error means that p.Commit has succeeded and the descriptors say so. After an error:
//   - p.Commit was not called, or has failed: the chain goes on with its old links; what was copied stays, and the next
//     Merge in the same direction does what is left. A lower link that had to grow for a merge down stays as large as the
//     upper one. When ctx ends, Merge stops within one piece of copying and returns its cause.
//   - p.Commit has succeeded: the merge is done, but the descriptors are behind; Rebind them when the chain is closed.
//   - fault.Poisoned: the disk must be opened again.
//
// The files of the link that is gone are closed when Merge returns and left for the caller to remove.
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
	return fault.Wrap(c.merge(ctx, p), "merge %s and %s %s", c.links[p.Lower].Name, c.links[p.Lower+1].Name, p.Direction)
}

func (c *Chain) merge(context.Context, MergeParams) error {
	return fault.New(fault.Unsupported, "", "links are not merged yet")
}

var _ = vmdk.NoParent
