// Package fuse makes a block.Device the one file of a FUSE file system that is mounted nowhere.
//
// Node side (privileged): NewSession opens /dev/fuse and makes a detached mount of it; Session.Dev goes to the server,
// Session.OpenDisk opens the file, export/loop makes it a block device, and closing the mount leaves the file system
// alive exactly as long as the block device.
//
// Serving side (no privilege but the descriptor): Server is a small loop of threads over /dev/fuse. Payloads are read
// into page-aligned buffers, so that a disk with O_DIRECT takes them as they are.
//
// # Take-over
//
// The kernel keeps a session alive while any process holds a duplicate of its /dev/fuse descriptor. A successor serves
// the descriptor without INIT and writes FUSE_NOTIFY_RESEND (Linux 6.9, include/uapi/linux/fuse.h): every request that
// was read and not answered comes again, with FUSE_UNIQUE_RESEND in its unique number. Doing such a request twice is
// harmless because all of them are positional and the block layer orders nothing behind an unanswered write. That holds
// only if the predecessor is certainly dead: RESEND is written once, before the first thread reads.
//
// One death the kernel does not forgive: a server that is killed while the kernel copies a request into its memory, and
// has a page missing there, makes the kernel answer that request with EIO (a fatal signal ends get_user_pages, and
// fuse_dev_do_read gives up). So the buffers are present before the first read and stay so, see sys.AlignedBuffer.
//
// Invariants: SaveState has returned before INIT is answered. A server answers the unique number as it got it. No thread
// is inside a read or a request when Serve returns.
//
// Goroutines: Serve starts its threads and one that watches the context, and waits for all of them. No locks. The
// description of /dev/fuse stays blocking: it is shared with every holder, and a non-blocking one that another Go process
// wraps in an os.File would wake that process for every request.
//
// It does not use FUSE_DEV_IOC_CLONE (closing a cloned descriptor ends its requests in flight) nor FUSE over io_uring
// (a successor gets nothing).
//
// Floor 5, an adapter: it imports pkg/export, pkg/block, pkg/fault and internal/sys.
package fuse
