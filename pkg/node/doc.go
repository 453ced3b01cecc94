// Package node makes disks usable on the node it runs on: it has them attached by the node's hostd, makes the kernel's
// device, finds or makes the partition and the file system, mounts it, and takes all of it away again. It implements
// stage.Volumes.
//
// Responsibilities:
//
//	Service   stage, publish, grow, measure. Each is a sequence of "ensure" steps that read the kernel's state and change
//	          only what differs, so that a repeated call continues wherever an earlier one, or this process, ended.
//	Journal   one small file per volume: what the kernel cannot be asked (where, how, for whom). It is written before the
//	          step whose undoing needs it and removed after the last thing is undone.
//	Freezer   stops a staged file system for a snapshot, by a helper process that lets it go on at the deadline whatever
//	          becomes of this process. Its record is written before; a start lets go on what a record names.
//	SCSIDevices  the Devices of a virtual machine whose hypervisor adds and removes the disks: they are waited for and recognized
//	          by their serial numbers. The other Devices, loop devices over FUSE, is wired by the program.
//	Holder    keeps the descriptors of attached disks (host.Held), so that hostd's successor can take them over, and
//	          gives them to it as soon as it answers. It also notices what hostd tells of them: troubles, another transport.
//
// Invariants: a disk that holds anything is never formatted. What a failed Stage leaves is what it found. The journal has a
// record for every disk that this package attached. A disk is detached only after the kernel has let its device go.
// A disk that was taken away while it was mounted is unstaged like any other, and the next Stage attaches it anew.
//
// Copies: the file system of a disk made from a snapshot or another disk is mounted beside its source (xfs nouuid; a btrfs gets
// an fsid of its own first), and grows to its disk when it is mounted. A read-only attachment has a device that takes writes
// and keeps them from the datastore, so that the journal of what was not unmounted is replayed; the mount is read-only.
//
// Locks: one per volume (internal/kmutex), taken by every changing method and never waited for; Usage takes none, and a stop of
// the file system only until it has begun: Unstage ends it. The Holder's mutex guards its map only and is not held across a
// call to hostd, the Freezer's is not held while a helper is waited for. Goroutines: the Holder's one, which Run owns; one for
// each helper of the Freezer, which Close waits for.
//
// It never parses a VMDK byte and must not import an adapter, gRPC, CSI or an API type; the kernel's devices, hostd, mounts
// and file system tools are interfaces of this package, wired by the program.
package node
