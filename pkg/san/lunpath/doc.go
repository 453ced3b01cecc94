// Package lunpath opens LUNs by what an administrator calls them: the path of a block device, of a file that stands for one, or an
// iscsi:// URL, for which no kernel is needed.
//
// What it gives is an fsx.File past every cache of this machine. A LUN is not taken by its name: which store is on it, and how large it
// is, is read through this path, and is compared with what the caller expects. What does not fit is an error that says why.
//
//	kind           when
//	NotFound       there is no such device, file, target or logical unit; or no store on the LUN
//	Precondition   another store than the one that was asked for, or one that its owner has opened anew since
//	Damaged        the LUN was shrunk, or the store's superblocks are broken
//	OutOfRange     it is smaller than was asked for
//	Unavailable    nothing answers at the portal
//	Denied         the portal refuses our name or secret; or the device's mode does
//	Unsupported    no direct I/O
//
// # URLs
//
// iscsi://[USER@]HOST[:PORT]/TARGET/LUN, as libiscsi and QEMU write them. A password in a URL is refused, because URLs end up in process lists
// and logs: Credentials have it.
//
// # What bounds a request
//
// Through iscsi:// a command that has no answer after Options.MaxIO is given up, and with it the connection, which ends the command in the target:
// the bound that leases need (package lunlease). For a device it is the kernel's, /sys/block/DEV/device/timeout.
//
// # Goroutines and locks
//
// An iscsi:// LUN owns an iscsi.Session, which Close ends. The package starts none itself.
//
// Floor 2: it imports pkg/block, pkg/fault, internal/fsx and pkg/san's subtree.
package lunpath
