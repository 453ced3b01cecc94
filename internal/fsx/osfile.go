package fsx

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

type osFile struct {
	fd       int // buffered; carries the locks and the error state that Datasync reports
	path     string
	writable bool

	directFD int         // O_DIRECT descriptor of the same inode, -1 without
	dio      dioAlign    // what directFD needs
	direct   atomic.Bool // false: all I/O goes through fd

	// mu: direct writes hold it shared; buffered writes and size changes exclusively while direct is on.
	mu sync.RWMutex

	lockMu sync.Mutex
	locked lockState

	syncMu  sync.Mutex
	syncErr error
}

func (d *osDir) Open(name string, flag Flag) (File, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	flags, err := openFlags(flag)
	if err != nil {
		return nil, fault.Wrap(err, "open %s", d.join(name))
	}
	// Opening a device or FIFO can have effects: look first. O_NONBLOCK keeps a name that was swapped in between from
	// blocking; it means nothing to a regular file.
	var st unix.Stat_t
	err = noEINTR(func() error { return unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, notRegular(d.join(name))
	}
	fd, err := d.openat(name, flags|unix.O_NONBLOCK, fileMode)
	if err != nil {
		return nil, Failure("open", d.join(name), err)
	}
	if err := noEINTR(func() error { return unix.Fstat(fd, &st) }); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		if err == nil {
			return nil, notRegular(d.join(name))
		}
		return nil, Failure("inspect", d.join(name), err)
	}
	f := &osFile{fd: fd, directFD: -1, path: d.join(name), writable: flag&ReadWrite != 0}
	f.locked = lockStates[Unlock]
	if flag&Direct != 0 {
		f.openDirect(d, name, flags&unix.O_ACCMODE, &st)
	}
	return f, nil
}

// CheckFlag refuses flags that contradict each other.
func CheckFlag(flag Flag) error {
	switch {
	case flag&^(ReadWrite|Create|Exclusive|Direct) != 0:
		return fault.New(fault.Invalid, "", "unknown open flag %#x", int(flag))
	case flag&Create != 0 && flag&ReadWrite == 0:
		return fault.New(fault.Invalid, "", "Create needs ReadWrite")
	case flag&Exclusive != 0 && flag&Create == 0:
		return fault.New(fault.Invalid, "", "Exclusive needs Create")
	}
	return nil
}

func openFlags(flag Flag) (int, error) {
	if err := CheckFlag(flag); err != nil {
		return 0, err
	}
	flags := unix.O_RDONLY
	if flag&ReadWrite != 0 {
		flags = unix.O_RDWR
	}
	if flag&Create != 0 {
		flags |= unix.O_CREAT
	}
	if flag&Exclusive != 0 {
		flags |= unix.O_EXCL
	}
	return flags, nil
}

func notRegular(path string) error {
	return fault.New(fault.Invalid, "Remove it, or name another file.", "%s is not a regular file", path)
}

func (f *osFile) Stat() (Info, error) {
	var st unix.Stat_t
	if err := noEINTR(func() error { return unix.Fstat(f.fd, &st) }); err != nil {
		return Info{}, Failure("inspect", f.path, err)
	}
	info := infoOf(&st)
	if st.Mode&unix.S_IFMT == unix.S_IFBLK { // whose st_size says nothing
		size, err := deviceSize(f.fd)
		if err != nil {
			return Info{}, Failure("inspect", f.path, err)
		}
		info.Size, info.Allocated = size, size
	}
	return info, nil
}

func (f *osFile) Datasync() error {
	f.syncMu.Lock()
	defer f.syncMu.Unlock()
	if f.syncErr != nil {
		return f.syncErr
	}
	if err := noEINTR(func() error { return unix.Fdatasync(f.fd) }); err != nil {
		if errors.Is(err, unix.EBADF) {
			return Failure("sync", f.path, err)
		}
		f.syncErr = Poisoned(f.path, err)
	}
	return f.syncErr
}

func (f *osFile) Truncate(size int64) error {
	if err := f.mayWrite("resize", size, 0); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return Failure("resize", f.path, noEINTR(func() error { return unix.Ftruncate(f.fd, size) }))
}

func (f *osFile) Allocate(off, n int64) error {
	if err := f.mayWrite("allocate", off, n); err != nil || n == 0 {
		return err
	}
	return Failure("allocate", f.path, noEINTR(func() error { return unix.Fallocate(f.fd, 0, off, n) }))
}

func (f *osFile) Punch(off, n int64) error {
	return f.clear("punch", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (f *osFile) Zero(off, n int64) error {
	return f.clear("zero", unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// clear makes the part of the range inside the file read as zeros by fallocate(2). Where the file system has no such mode
// it writes zeros, except to punch.
func (f *osFile) clear(op string, mode uint32, off, n int64) error {
	if err := f.mayWrite(op, off, n); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if n = min(n, info.Size-off); n <= 0 {
		return nil
	}
	f.mu.Lock() // a part of a page is zeroed through the page cache: no direct write beside it
	err = noEINTR(func() error { return unix.Fallocate(f.fd, mode, off, n) })
	f.mu.Unlock()
	if mode&unix.FALLOC_FL_PUNCH_HOLE == 0 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)) {
		return writeZeros(f, off, n)
	}
	return Failure(op, f.path, err)
}

var zeros = AlignedBuffer(bounceSize)

func writeZeros(w io.WriterAt, off, n int64) error {
	for n > 0 {
		part := zeros[:min(n, int64(len(zeros)))]
		if _, err := w.WriteAt(part, off); err != nil {
			return err
		}
		off, n = off+int64(len(part)), n-int64(len(part))
	}
	return nil
}

func (f *osFile) SeekData(off int64) (start, end int64, err error) {
	if off < 0 {
		return 0, 0, fault.New(fault.Invalid, "", "seek %s: offset %d", f.path, off)
	}
	start, err = noEINTR1(func() (int64, error) { return unix.Seek(f.fd, off, unix.SEEK_DATA) })
	switch {
	case errors.Is(err, unix.ENXIO):
		return 0, 0, io.EOF
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		// lseek(2): no SEEK_DATA here; the whole file counts as data.
		info, err := f.Stat()
		if err != nil {
			return 0, 0, err
		}
		if off >= info.Size {
			return 0, 0, io.EOF
		}
		return off, info.Size, nil
	case err != nil:
		return 0, 0, Failure("seek", f.path, err)
	}
	end, err = noEINTR1(func() (int64, error) { return unix.Seek(f.fd, start, unix.SEEK_HOLE) })
	if errors.Is(err, unix.ENXIO) { // truncated in between
		return 0, 0, io.EOF
	}
	return start, end, Failure("seek", f.path, err)
}

func (f *osFile) Close() error {
	if f.fd < 0 {
		return nil
	}
	// Not by closing: while some goroutine starts a program, its child holds a copy of every descriptor until it executes, and
	// with it locks that belong to the open file (fcntl(2), F_OFD_SETLK).
	f.lockMu.Lock()
	if f.locked != (lockState{}) {
		_ = f.setLock(ownByte, unix.F_UNLCK)
		f.releaseLocks(lockState{})
	}
	f.lockMu.Unlock()
	err := unix.Close(f.fd)
	f.fd = -1
	if f.directFD >= 0 {
		err = errors.Join(err, unix.Close(f.directFD))
		f.directFD = -1
	}
	return Failure("close", f.path, err)
}

// mayWrite refuses what the kernel would, with a better text.
func (f *osFile) mayWrite(op string, off, n int64) error {
	if off < 0 || n < 0 || off+n < 0 {
		return fault.New(fault.Invalid, "", "%s %s: offset %d, length %d", op, f.path, off, n)
	}
	if !f.writable {
		return fault.New(fault.ReadOnly, "", "%s %s: it was opened read-only", op, f.path)
	}
	return nil
}
