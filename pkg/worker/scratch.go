package worker

import (
	"context"
	"os"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// overlaid is a read-only disk under a throw-away redo log: its user writes, as a file system does that replays its
// journal, and nothing reaches the datastore.
type overlaid struct {
	*block.Overlaid
	below Disk
}

func overlay(d Disk, scratch *os.File) (Disk, error) {
	o, err := block.Overlay(d, scratch)
	if err != nil {
		_ = d.Close() // it is open for reading only
		return nil, err
	}
	return overlaid{o, d}, nil
}

// Grow implements Disk.
func (o overlaid) Grow(context.Context, int64) error {
	return fault.New(fault.ReadOnly, "Detach it first.", "the disk is attached read-only")
}

// Close implements Disk.
func (o overlaid) Close() error { return o.below.Close() }
