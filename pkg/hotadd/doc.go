// Package hotadd is the port of a host's SCSI bus, to which disks are added while the machine runs, and the emulated
// bus that stands where no hypervisor is.
//
// A bus has 4 controllers with 16 units each; unit 7 of a controller is the controller itself (SCSI-2 section 5.6, and
// what VMware reserves on every virtual controller), so 60 slots take disks. Slots span everything on the host that
// adds disks, so the bus alone picks them.
//
// Invariants: a disk has at most one slot, a slot at most one disk. A disk that is attached again while it has a slot
// keeps it. What a bus answered survives this process.
//
// Emulated keeps its state in one small JSON file (temporary file, fsync, rename, fsync of the directory) in the host's
// run directory, which the machine's restart empties, as a real bus would be. Its mutex guards the file;
// it is held while the file is read and written, and no goroutine is started.
//
// hotaddtest is the conformance suite of the port. Adapters for real buses are hotadd/qemu and hotadd/vsphere (floor 5); hotadd/guest
// is the side of the machine that gets the disks. test/guest puts all of it together in a real machine.
//
// Floor 2: it imports pkg/fault and the standard library only.
package hotadd
