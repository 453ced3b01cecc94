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
//	Holder    keeps the descriptors of attached disks (host.Held), so that hostd's successor can take them over, and
//	          gives them to it as soon as it answers.
//
// Invariants: a disk that holds anything is never formatted. What a failed Stage leaves is what it found. The journal has a
// record for every disk that this package attached. A disk is detached only after the kernel has let its device go.
//
// Locks: one per volume (internal/kmutex), taken by every changing method and never waited for; Usage takes none. The Holder's
// mutex guards its map only and is not held across a call to hostd. Goroutines: the Holder's one, which Run owns.
//
// It never parses a VMDK byte and must not import an adapter, gRPC, CSI or an API type; the kernel's devices, hostd, mounts
// and file system tools are interfaces of this package, wired by the program.
package node
