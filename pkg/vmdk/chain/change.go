package chain

import (
	"context"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// SnapshotParams of Chain.Snapshot. The callbacks must not call into the chain.
type SnapshotParams struct {
	// Child is the descriptor's name of the new head, such as disk-000001.vmdk.
	Child string
	// Type is the child's: any sparse one; default twoGbMaxExtentSparse.
	Type vmdk.Type
	// ExtentSize is the most guest bytes per extent of a split child; 0: vmdk's default.
	ExtentSize int64
	// Before, if set, is called when everything that can be made ahead is durable, right before the gate closes.
	Before func() error
	// Commit makes the change of links permanent. It is called with the gate closed and everything flushed. nil: it is
	// permanent; Poisoned: nobody knows; any other error: it has not happened.
	Commit func(parent, child *vmdk.Info) error
}

// Direction of a merge.
type Direction string

// The directions.
const (
	Down Direction = "down" // the upper link's grains go into the lower link; the upper one disappears
	Up   Direction = "up"   // the lower link's grains that the upper one lacks go into it; the lower one disappears
)

// MergeParams of Chain.Merge. The callbacks must not call into the chain.
type MergeParams struct {
	Lower     int // links[Lower] and links[Lower+1] become one
	Direction Direction
	// Pace, if set, is called before each piece of n bytes is copied, and may wait: the rate limit.
	Pace func(ctx context.Context, n int64) error
	// Progress, if set, is told how many of the bytes to be copied are copied.
	Progress func(done, total int64)
	// Commit makes the change of links permanent, as in SnapshotParams. merged is what the link that stays will be.
	Commit func(merged Identity) error
}

// Identity is what the descriptor of a link says about its place in a chain.
type Identity struct {
	Name      string   // descriptor's file name
	CID       vmdk.CID // 0 to leave it: that of the head changes with every use
	LongID    string   // longContentID, "" to leave it, or to draw one if the CID changes
	ParentCID vmdk.CID // vmdk.NoParent for a base
	Parent    string   // hint, "" for a base
	UUID      string   // of the disk, for a base; "" to leave it
	Size      int64    // bytes; compared if set

	// Type and Extents are told in MergeParams.Commit, for a manifest; Rebind does not look at them.
	Type    vmdk.Type
	Extents []string
}
