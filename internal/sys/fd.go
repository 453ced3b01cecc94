package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// Fd is the number of f's descriptor. Unlike (*os.File).Fd it never changes the descriptor's blocking mode, which is a
// property of the open file description and so would reach every process that holds a duplicate. The caller keeps f
// alive (runtime.KeepAlive) as long as it uses the number.
func Fd(f *os.File) (int, error) {
	c, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if err := c.Control(func(v uintptr) { fd = int(v) }); err != nil {
		return -1, err
	}
	return fd, nil
}

// Dup is a second descriptor of the same open file description, closed on exec.
func Dup(f *os.File) (*os.File, error) {
	c, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var derr error
	if err := c.Control(func(v uintptr) { fd, derr = unix.FcntlInt(v, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", derr)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// AlignedBuffer is n bytes of page-aligned anonymous memory, all of it present, and kept so as far as the kernel lets us:
// in small pages, that nothing collapses into large ones behind our back, and locked if RLIMIT_MEMLOCK allows.
// FreeBuffer gives it back.
func AlignedBuffer(n int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	_ = unix.Madvise(b, unix.MADV_NOHUGEPAGE) // EINVAL: a kernel without huge pages
	if err := unix.Madvise(b, unix.MADV_POPULATE_WRITE); err != nil {
		for i := 0; i < n; i += 4096 { // Linux before 5.14
			b[i] = 0
		}
	}
	_ = unix.Mlock(b)
	return b, nil
}

// FreeBuffer unmaps what AlignedBuffer returned.
func FreeBuffer(b []byte) error { return os.NewSyscallError("munmap", unix.Munmap(b)) }
