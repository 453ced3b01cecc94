package fsx

import (
	"errors"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// directDevice is a device, or a file in its place, that is never read or written through the page cache of this machine:
// another machine may write the same device, and a cached page would hide that, or undo it by a read-modify-write.
type directDevice struct {
	*osFile       // its descriptor is the O_DIRECT one
	block   int64 // what a request must fit, in bytes

	// edges: writes of whole blocks hold it shared; those that take a part of a block from the medium exclusively.
	edges sync.RWMutex
}

// openDirectDevice is OpenDevice with Direct.
func openDirectDevice(path string, flags int, writable bool) (File, error) {
	flags |= unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOCTTY | unix.O_DIRECT
	fd, err := noEINTR1(func() (int, error) { return unix.Open(path, flags, 0) })
	if errors.Is(err, unix.EBUSY) {
		return nil, fault.New(fault.InUse, "Unmount it first.", "device %s is in use: %w", path, err)
	}
	if errors.Is(err, unix.EINVAL) {
		return nil, fault.New(fault.Unsupported, "Use a block device, or a file on ext4, XFS or NFS.", "%s cannot be opened for direct I/O: %w", path, err)
	}
	if err != nil {
		return nil, Failure("open device", path, err)
	}
	f := &osFile{fd: fd, directFD: -1, path: path, writable: writable}
	f.locked = lockStates[Unlock]
	d := &directDevice{osFile: f, block: bufferAlign}
	var sx unix.Statx_t
	err = noEINTR(func() error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE|unix.STATX_DIOALIGN, &sx)
	})
	switch kind := uint32(sx.Mode) & unix.S_IFMT; {
	case err != nil:
		return nil, errors.Join(Failure("inspect", path, err), f.Close())
	case kind != unix.S_IFBLK && kind != unix.S_IFREG:
		return nil, errors.Join(fault.New(fault.Invalid, "Name a block device.", "%s is no block device", path), f.Close())
	case kind == unix.S_IFBLK:
		block, err := noEINTR1(func() (int, error) { return unix.IoctlGetInt(fd, unix.BLKSSZGET) })
		if err != nil {
			return nil, errors.Join(Failure("inspect", path, err), f.Close())
		}
		d.block = int64(block)
	case sx.Mask&unix.STATX_DIOALIGN != 0 && sx.Dio_offset_align > 0 && sx.Dio_offset_align <= bufferAlign:
		d.block = int64(sx.Dio_offset_align)
	}
	return d, nil
}

func (d *directDevice) fits(p []byte, off int64) bool {
	return (off|int64(len(p)))&(d.block-1) == 0
}

func (d *directDevice) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.New(fault.Invalid, "", "read %s: offset %d", d.path, off)
	}
	done := 0
	for done < len(p) {
		n, err := d.readSome(p[done:min(len(p), done+maxTransfer)], off+int64(done))
		if err != nil {
			return done, Failure("read", d.path, err)
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}

func (d *directDevice) readSome(p []byte, off int64) (int, error) {
	if d.fits(p, off) && addressOf(p)&uintptr(d.block-1) == 0 {
		return pread(d.fd, p, off)
	}
	bp := bouncePool.Get().(*[]byte)
	defer bouncePool.Put(bp)
	lo := off &^ (d.block - 1)
	hi := (off + int64(len(p)) + d.block - 1) &^ (d.block - 1)
	n, err := pread(d.fd, (*bp)[:min(hi-lo, bounceSize)], lo)
	if err != nil || int64(n) <= off-lo {
		return 0, err
	}
	return copy(p, (*bp)[off-lo:n]), nil
}

func (d *directDevice) WriteAt(p []byte, off int64) (int, error) {
	if err := d.mayWrite("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		n, err := d.writeSome(p[done:min(len(p), done+maxTransfer)], off+int64(done))
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return done, Failure("write", d.path, err)
		}
		done += n
	}
	return done, nil
}

// writeSome writes from the start of p as much as is alike: whole blocks, or a part of one.
func (d *directDevice) writeSome(p []byte, off int64) (int, error) {
	in := off & (d.block - 1)
	if in != 0 || int64(len(p)) < d.block {
		return d.writePart(p[:min(int64(len(p)), d.block-in)], off-in, in)
	}
	p = p[:int64(len(p))&^(d.block-1)]
	d.edges.RLock()
	defer d.edges.RUnlock()
	if addressOf(p)&uintptr(d.block-1) == 0 {
		return pwrite(d.fd, p, off)
	}
	bp := bouncePool.Get().(*[]byte)
	defer bouncePool.Put(bp)
	return pwrite(d.fd, (*bp)[:copy(*bp, p)], off)
}

// writePart writes p into the block at off, in bytes behind its start.
func (d *directDevice) writePart(p []byte, off, in int64) (int, error) {
	d.edges.Lock()
	defer d.edges.Unlock()
	bp := bouncePool.Get().(*[]byte)
	defer bouncePool.Put(bp)
	block := (*bp)[:d.block]
	n, err := pread(d.fd, block, off)
	if err != nil {
		return 0, err
	}
	clear(block[n:])
	copy(block[in:], p)
	if _, err := pwrite(d.fd, block, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (d *directDevice) Punch(off, n int64) error {
	return d.whole("punch", unix.FALLOC_FL_PUNCH_HOLE, off, n)
}

// Zero has the kernel do it, by WRITE SAME where the device can, else it writes zeros.
func (d *directDevice) Zero(off, n int64) error {
	err := d.whole("zero", unix.FALLOC_FL_ZERO_RANGE, off, n)
	if errors.Is(err, fault.Unsupported) {
		info, err := d.Stat()
		if err != nil {
			return err
		}
		return writeZeros(d, off, min(n, info.Size-off))
	}
	return err
}

// whole clears the whole blocks of the range inside the device, and writes zeros over the rest.
func (d *directDevice) whole(op string, mode uint32, off, n int64) error {
	if err := d.mayWrite(op, off, n); err != nil {
		return err
	}
	info, err := d.Stat()
	if err != nil {
		return err
	}
	if n = min(n, info.Size-off); n <= 0 {
		return nil
	}
	from, to := (off+d.block-1)/d.block*d.block, (off+n)/d.block*d.block
	if from >= to {
		return writeZeros(d, off, n)
	}
	d.edges.Lock()
	err = noEINTR(func() error { return unix.Fallocate(d.fd, mode|unix.FALLOC_FL_KEEP_SIZE, from, to-from) })
	d.edges.Unlock()
	if err != nil { // first: where it cannot, nothing was changed
		return Failure(op, d.path, err)
	}
	return errors.Join(writeZeros(d, off, from-off), writeZeros(d, to, off+n-to))
}
