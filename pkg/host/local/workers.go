package local

import (
	"context"
	"os"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// Workers runs one process per attached disk (pkg/worker's Supervisor).
type Workers interface {
	// Start serves a disk and returns when its device answers. old, if not nil, is the pidfd of a process that served
	// it: it is ended, and the disk is served only after its certain death.
	Start(ctx context.Context, spec WorkerSpec, old *os.File) (Worker, error)
}

// WorkerSpec is a disk to serve; the descriptors stay the caller's.
type WorkerSpec struct {
	ID        string
	Datastore string
	// Lent: it is served in this process to other hosts, and has no device.
	Lent     bool
	Dir      *os.File    // the disk's directory
	Links    []chain.Ref // base first
	Device   host.Device
	ReadOnly bool
	Format   host.DiskFormat
	NoLocks  bool // no byte locks are taken
}

// Worker is one served disk; a process of it that dies is replaced. What changes the disk is pkg/volume's to ask for, the
// five others are the process's life.
type Worker interface {
	// Server changes the disk while it is served. Grow makes the kernel ask for its size again.
	volume.Server
	// Stop closes the disk cleanly and ends the process. Unavailable, Timeout: it is served on.
	Stop(ctx context.Context) error
	// Kill ends the process, with certainty, and leaves the disk as it is.
	Kill() error
	// PidFD is the process; the caller closes it. Unavailable: there is none just now.
	PidFD() (*os.File, error)
	// SetLinks changes what a replacement process opens.
	SetLinks(links []chain.Ref)
	State() WorkerState
}

// WorkerState is a snapshot.
type WorkerState struct {
	PID      int
	Restarts int
	Size     int64  // bytes
	Requests uint64 // of the disk's user, as far as the process told while it merged links
	Ended    bool   // no process will serve the disk any more
	Poisoned bool
	Trouble  *host.Trouble
}
