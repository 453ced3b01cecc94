package lun

import (
	"context"
	"os"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Workers runs one process per attached disk (pkg/worker's Supervisor).
type Workers interface {
	// Start serves a disk and returns when its device answers. old, if not nil, is the pidfd of a process that served it: it is
	// ended, and the disk is served only after its certain death.
	Start(ctx context.Context, spec WorkerSpec, old *os.File) (Worker, error)
}

// WorkerSpec is a disk to serve; the descriptors stay the caller's.
type WorkerSpec struct {
	ID        string
	Datastore string
	Device    host.Device
	ReadOnly  bool
	Order     []string // of transports
}

// Worker is one served disk; a process of it that dies is replaced.
type Worker interface {
	// Grow makes the worker, and the kernel, ask for the disk's size again; it is size at least.
	Grow(ctx context.Context, size int64) error
	// Stop flushes the disk and ends the process. Unavailable, Timeout: it is served on.
	Stop(ctx context.Context) error
	// Kill ends the process, with certainty, and leaves the disk as it is.
	Kill() error
	// PidFD is the process; the caller closes it. Unavailable: there is none just now.
	PidFD() (*os.File, error)
	State() WorkerState
}

// WorkerState is a snapshot.
type WorkerState struct {
	PID      int
	Restarts int
	Size     int64 // bytes
	Ended    bool  // no process will serve the disk any more
	Poisoned bool
	Trouble  *host.Trouble
	// Transport is how the disk is reached now, Skipped what was asked for before it.
	Transport string
	Skipped   []host.Skipped
}
