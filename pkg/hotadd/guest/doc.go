// Package guest is the other side of a hot-add bus: the kernel of the machine that is given the disks.
//
// A disk is recognized by its serial number (hotadd.Disk.Serial, for most the digits of its ddb.uuid), never by its name or place: the serial is
// in the unit serial number page (SPC-4 section 7.8.15, page 0x80; QEMU and VMware), or is the disk's 128-bit name
// (section 7.8.6, page 0x83; VMware). These pages are read from sysfs, where the kernel keeps what it read when it
// found the disk, and then from the disk itself: a controller without events (lsi53c895a) leaves the kernel with disks that are
// gone, and takes a new disk in an old place for the old one.
//
// What goes wrong has a kind: Timeout, a disk did not appear; Precondition, it has another size than it should, or two
// disks have one identity; InUse, the kernel takes it for the disk that was in its slot before.
//
// There are no goroutines and no locks; Wait polls.
//
// Floor 2: it imports pkg/fault, pkg/hotadd and golang.org/x/sys/unix.
package guest
