package remote

import (
	"context"
	"io"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
)

// DiskConfig says which disk to use and how.
type DiskConfig struct {
	ClientConfig
	Volume   string
	ReadOnly bool
	// Order of transports that are asked for.
	Order []string
	// OpenLUN opens the path of this node to a LUN; nil: there is no SAN here. The Disk closes the file.
	OpenLUN func(ctx context.Context, lun san.LUN) (fsx.File, error)
	// Changed is told of every change of the State, one call at a time. May be nil.
	Changed func(State)
	// Retry is how often SAN is tried while NBD serves, default 5 s; Patience how long requests wait for a server that is gone,
	// default 10 minutes.
	Retry, Patience time.Duration
}

// Disk is a disk of a remote datastore.
type Disk struct {
	io.ReaderAt
	io.WriterAt
}

var _ block.Device = (*Disk)(nil)

// OpenDisk opens the disk at the server and begins with the first transport of the order that works.
func OpenDisk(context.Context, DiskConfig) (*Disk, error) { return nil, later() }

// State is how the disk is reached now.
func (d *Disk) State() State { return State{} }

// Flush implements block.Device.
func (d *Disk) Flush() error { return later() }

// Discard implements block.Device.
func (d *Disk) Discard(_, _ int64) error { return later() }

// WriteZeroes implements block.Device.
func (d *Disk) WriteZeroes(_, _ int64) error { return later() }

// Size implements block.Device.
func (d *Disk) Size() int64 { return 0 }

// Grow asks the server for the size now, which must be size at least.
func (d *Disk) Grow(context.Context, int64) error { return later() }

// Close flushes, gives the block map back and ends the connections. It does not release the disk: Client.CloseVolume does.
func (d *Disk) Close() error { return later() }
