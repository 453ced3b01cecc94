package remote

import (
	"context"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/nbd"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
)

// Names of the transports of a remote disk.
const (
	SAN = "san"
	NBD = "nbd"
)

// Datastore is what a Server serves; the owner of a LUN implements it. It has more than five methods because it is what the
// controller asks of a host (host.Disks, host.Snapshots) and what a node asks.
type Datastore interface {
	host.Disks
	host.Snapshots
	// Open attaches a disk for a node. Repeated by the same node in the same mode it finds it open, and returns the same
	// Export.Device as before: another Device says that what was acknowledged and not flushed may be lost.
	// Kinds: InUse (another node has it), and those of host.Attacher's Attach.
	Open(ctx context.Context, id, node string, readOnly bool) (Served, error)
	// Close flushes, closes and releases it. No request runs any more. Not open is closed already.
	Close(ctx context.Context, id, node string) error
	// Maps grants block maps of what is open; nil: this datastore has none.
	Maps() *san.Server
	// Space is the capacity and what is free, in bytes.
	Space(ctx context.Context) (total, free int64, err error)
}

// Spread is a Datastore whose disks several hosts may have, each its own or all the same: directories. Who asks for one is told
// which host has it open, or has it at all.
type Spread interface {
	Datastore
	// Holds says whether a disk, or the one of a snapshot, is open for a node here. Kinds: NotFound (this host does not have it at all),
	// Unavailable (also: the datastore, which is asked for by the id "", is not ready).
	Holds(ctx context.Context, id, node string) (bool, error)
}

// Served is a disk that is open for a node.
type Served struct {
	Disk  host.Disk
	Epoch int64
	// Export is a template: the connections of every ticket get a copy. Who closes the disk without being asked (a lost lease) ends
	// Revoked first, so that no client hears of an error; it comes again and finds the disk where it is.
	Export nbd.Export
}

// Skip is a transport that was asked for and does not serve.
type Skip struct {
	Transport string       `json:"transport"`
	Reason    *fault.Fault `json:"reason"`
}

// State is how a disk is reached now.
type State struct {
	Transport string `json:"transport"`
	Skipped   []Skip `json:"skipped,omitempty"` // asked for before Transport, in that order
	Size      int64  `json:"size"`
}
