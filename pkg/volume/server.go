package volume

import (
	"context"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Grower is the worker of an attached disk, as Expand uses it.
type Grower interface {
	// Grow makes the disk larger while it is served.
	Grow(ctx context.Context, size int64) error
}

// Server is the worker that has a disk open on this host. Its commit callbacks run in the goroutine of the caller, or while
// that waits in the method, and never after it: they commit the disk's manifest. When one has returned, the server has the
// worker's successors open what Volumes.Links says now.
type Server interface {
	Grower
	// Snapshot is chain.Chain.Snapshot: child is the descriptor's name of the new head, commit its Commit.
	Snapshot(ctx context.Context, child string, extentSize int64, commit func(parent, child *vmdk.Info) error) error
	// Merge is chain.Chain.Merge. When ctx ends it returns soon, with both links clean, and an error of kind Timeout.
	// Unavailable: the worker died, or did not answer; Commit may have been called or not.
	Merge(ctx context.Context, p chain.MergeParams) error
	// MergeCost is chain.Chain.MergeCost.
	MergeCost(ctx context.Context, lower int) (down, up int64, err error)
}
