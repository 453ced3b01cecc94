package node

import (
	"context"
	"io"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Hostd is the node's own hostd. Embedding gives it more than five methods: both ports are served by one socket.
type Hostd interface {
	host.Attacher
	host.Keeper
}

// Device is the kernel's block device of one disk.
type Device struct {
	Path      string // /dev/loopN
	ReadOnly  bool
	AutoClear bool  // it disappears with its last user
	Size      int64 // bytes
	// Hold keeps the device while nothing has it mounted; the owner of the Device closes it.
	Hold io.Closer
}

// Close lets the device go; closing twice is harmless.
func (d *Device) Close() {
	if d.Hold != nil {
		d.Hold.Close()
		d.Hold = nil
	}
}

// Devices makes and finds the block devices of disks.
type Devices interface {
	// NewSession makes the kernel's end of disk id, which nobody serves yet.
	NewSession(id string) (Session, error)
	// Find finds the device of disk id, whoever made it, and holds it.
	Find(id string) (d Device, found bool, err error)
	// Resize makes d as large as what is behind it, also while it is mounted.
	Resize(d Device) error
	// Partition makes the bytes [start, start+length) of d a block device, or makes the one that starts there so
	// long, also while it is mounted.
	Partition(d Device, start, length int64) (path string, err error)
	// Release takes the device of disk id away and waits until it is gone; no device is gone already.
	// Kinds: InUse (somebody has it open).
	Release(ctx context.Context, id string) error
}

// Session is the kernel's end of a disk before it is a block device.
type Session interface {
	// Device is what hostd serves; the descriptors are the session's.
	Device() host.Device
	// Export makes the block device. It needs a server. Kinds: Timeout (the server does not answer).
	Export(ctx context.Context, o ExportOptions) (Device, error)
	// Close closes the session's descriptors. An exported device stays.
	Close() error
}

// ExportOptions say what block device a session becomes.
type ExportOptions struct {
	// ReadOnly device. Without it, the device is writable if the server takes writes: of a read-only attachment it keeps
	// them for itself, so that journals can be replayed.
	ReadOnly  bool
	AutoClear bool // it disappears with its last user
	// Partitions: the disk's partitions may become devices, by the kernel itself or by Devices.Partition. Without it
	// nobody looks into a workload's own disk.
	Partitions bool
}

// Mount is what is mounted at a path.
type Mount struct {
	Source   string // /dev/X for a file system on a device
	FSType   string
	ReadOnly bool // of this mount
}

// Mounts mounts.
type Mounts interface {
	// At says what is mounted at exactly this path, the uppermost.
	At(path string) (m Mount, mounted bool, err error)
	Mount(source, target, fsType string, options []string) error
	// Bind makes source, a directory or a file, appear at target.
	Bind(source, target string, readOnly bool, options []string) error
	Unmount(target string) error
}

// FileSystems are the tools for what is on a block device.
type FileSystems interface {
	// Probe says what is on the device: "" for nothing at all, a file system's type, or Unknown.
	Probe(device string) (string, error)
	// Make makes a file system on a device, whatever is on it.
	Make(ctx context.Context, device, fsType string) error
	// Clear makes Probe say "" of a device whose file system was not finished.
	Clear(device string) error
	// Prepare is called before each mount. It repairs what a clean mount does not need, lets a file system that cannot grow
	// while it is mounted grow before, and has a copy be mountable beside its source. Kinds: Damaged, Unsupported.
	Prepare(ctx context.Context, device, fsType string, p Preparation) error
	// Grow makes the mounted file system as large as its device. Kinds: Precondition (the kernel does not allow it).
	Grow(ctx context.Context, device, mountpoint, fsType string) error
}

// Preparation is what there is to know before a mount.
type Preparation struct {
	ReadOnly bool   // the mount: nothing is repaired and nothing grows
	Copy     bool   // the content came from another disk, which may be mounted here too
	DiskUUID string // ddb.uuid
}

// Unknown is what Probe says of content that is no file system it knows.
const Unknown = "unknown"

// Partitions reads and writes the partition tables on block devices.
type Partitions interface {
	// Ensure returns the one partition of the GUID partition table on device, in bytes; an empty device gets a table with
	// one first. Kinds: Precondition (something else is on the device).
	Ensure(device string, readOnly bool) (start, length int64, err error)
	// Grow makes the one partition reach to the end of the device and returns it.
	Grow(device string) (start, length int64, err error)
}
