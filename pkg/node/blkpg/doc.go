// Package blkpg tells the kernel about a partition of a block device (ioctl BLKPG, include/uapi/linux/blkpg.h), as
// partx(8) does, for kernels that have no partition parser or a device that was configured without asking it.
//
// A partition's device number is the kernel's choice; a container whose /dev is its own has no node for it, so one is
// made. No goroutines, no locks. It imports internal/sys and pkg/fault.
package blkpg
