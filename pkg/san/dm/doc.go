// Package dm makes a block device of a block map in the kernel: a device-mapper device with one linear target for each extent on
// a LUN, and zero targets for zeros. Reads and writes then pass through no process.
//
// A table in the kernel knows no lease: it goes on when the process that made it is stopped or dead. So a map becomes a device only
// where whoever makes it ends it in time (Device.Fail from a timer of its own that is armed before the table is loaded), or where the
// LUN has reservations, which stop a node whatever its kernel does. A change of the map is Replace, the end of the right to
// write is Fail:
//
//	Create   create, load, resume. (Crash before resume: a device without a table, which Create of the same name removes.)
//	Replace  load the next table, suspend (waits for what is under way and flushes), resume, which swaps the tables.
//	         (Crash before resume: the device stands still; Replace or Fail of the same name goes on.)
//	Fail     the same with a table of errors and without the flush: for fencing, when the LUN may not answer any more.
//	Remove   InUse while somebody has it open.
//
// Sources: Documentation/admin-guide/device-mapper/{linear,zero}.rst and include/uapi/linux/dm-ioctl.h of Linux 6.1. What a kernel
// cannot do is told by Open (fault.Unsupported).
//
// No goroutines; a Control may be used concurrently. Floor 2: pkg/fault, pkg/san.
package dm
