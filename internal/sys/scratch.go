package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// Scratch makes a file without a name in dir, which goes with its last descriptor; where the file system has none, in memory.
func Scratch(dir, name string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil { // no file system of its own, an old one, a read-only one
		fd, err = unix.MemfdCreate("vmdk-"+name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
