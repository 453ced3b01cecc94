package local

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// newScratch makes the redo log of a read-only attachment: a file without a name in dir, which goes with its last
// descriptor; where the file system has none, in memory.
func newScratch(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil { // no file system of its own, an old one, a read-only one
		fd, err = unix.MemfdCreate("vmdk-redo", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fault.Wrap(os.NewSyscallError("memfd_create", err), "make the redo log of a read-only attachment")
	}
	return os.NewFile(uintptr(fd), "redo"), nil
}
