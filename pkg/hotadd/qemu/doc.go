// Package qemu is the bus of a QEMU virtual machine: disks are added to the running machine and removed from it through
// its machine protocol (QMP), as scsi-hd devices over the vmdk block driver.
//
// QEMU is the only place where something is kept. A device's id holds the disk's id and uuid ("vmdkcsi.<id>.<uuid>"), its
// place on the bus is the slot, and the block node is named after the disk; so any process that may open the monitor
// sees the same bus, and a machine that ends takes all of it along. Devices with other ids are somebody else's: they take
// their slots, are not listed and are never touched.
//
// The disk's identity is its serial number (the ddb.uuid's 32 digits), vendor and product as VMware's disks have them,
// and a world-wide name of 64 bits: QEMU has no room for VMware's 128.
//
// A read-only disk gets a redo log on top (qcow2), whose name is removed while QEMU has it open.
//
// QEMU's image locks refuse an image that another process has open. Removing a device does not wait for the guest to
// unmount. A disk that somebody else pulls out (surprise removal) leaves its block node, with the image's lock; Detach and
// the next Attach remove it.
//
// virtio-scsi-pci and pvscsi tell the guest about a disk. lsi53c895a does not: hotadd/guest makes the kernel look.
//
// # Goroutines and locks
//
// Every operation has a connection of its own, because QEMU serves one client of a monitor at a time. The connection has one
// goroutine, which reads; close ends it and waits for it, and so does the operation's context. One slot of a channel
// gives the operations of this process their turns. The monitor's mutex guards its maps and the writing of commands.
//
// # Tests
//
// The package's own tests run a real QEMU whose machine is paused before its first instruction: there is no guest. test/guest
// runs one, in which the node plugin's service uses the disks.
//
// Floor 5: it imports pkg/fault and pkg/hotadd. It is imported by cmd and tests only.
package qemu
