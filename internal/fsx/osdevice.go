package fsx

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// OpenDevice opens a block device, or a regular file in its place, by a path that an administrator gave: links on the way are
// followed. Stat tells the device's size. Flags are ReadWrite, and Exclusive, with which a device that is mounted, or that
// somebody else has so, is fault.InUse (open(2), O_EXCL), and Direct, with which nothing goes through this machine's page
// cache, parts of blocks included. A device has no holes that can be found, and cannot be resized.
func OpenDevice(path string, flag Flag) (File, error) {
	if flag&^(ReadWrite|Exclusive|Direct) != 0 {
		return nil, fault.New(fault.Invalid, "", "open flags %#x for device %s", int(flag), path)
	}
	flags := unix.O_RDONLY
	if flag&ReadWrite != 0 {
		flags = unix.O_RDWR
	}
	if flag&Exclusive != 0 {
		flags |= unix.O_EXCL
	}
	if flag&Direct != 0 {
		return openDirectDevice(path, flags, flag&ReadWrite != 0)
	}
	fd, err := noEINTR1(func() (int, error) { return unix.Open(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0) })
	if errors.Is(err, unix.EBUSY) {
		return nil, fault.New(fault.InUse, "Unmount it first.", "device %s is in use: %w", path, err)
	}
	if err != nil {
		return nil, Failure("open device", path, err)
	}
	f := &osFile{fd: fd, directFD: -1, path: path, writable: flag&ReadWrite != 0}
	f.locked = lockStates[Unlock]
	var st unix.Stat_t
	err = noEINTR(func() error { return unix.Fstat(fd, &st) })
	switch kind := st.Mode & unix.S_IFMT; {
	case err != nil:
		return nil, errors.Join(Failure("inspect", path, err), f.Close())
	case kind != unix.S_IFBLK && kind != unix.S_IFREG:
		return nil, errors.Join(fault.New(fault.Invalid, "Name a block device.", "%s is no block device", path), f.Close())
	case kind == unix.S_IFREG:
		return f, nil
	}
	block, err := noEINTR1(func() (int, error) { return unix.IoctlGetInt(fd, unix.BLKSSZGET) })
	if err != nil {
		return nil, errors.Join(Failure("inspect", path, err), f.Close())
	}
	return &device{osFile: f, block: int64(block)}, nil
}

// device is a block device: whole blocks of it are punched and zeroed (blkdev_fallocate refuses others), the rest is written.
type device struct {
	*osFile
	block int64
}

func (d *device) Punch(off, n int64) error { return d.whole(off, n, d.osFile.Punch) }

func (d *device) Zero(off, n int64) error { return d.whole(off, n, d.osFile.Zero) }

func (d *device) whole(off, n int64, clear func(off, n int64) error) error {
	if err := d.mayWrite("zero", off, n); err != nil {
		return err
	}
	from, to := (off+d.block-1)/d.block*d.block, (off+n)/d.block*d.block
	if from >= to {
		return writeZeros(d, off, n)
	}
	if err := clear(from, to-from); err != nil { // first: Unsupported means that nothing was changed
		return err
	}
	return errors.Join(writeZeros(d, off, from-off), writeZeros(d, to, off+n-to))
}

// deviceSize is the size of what an open block device has.
func deviceSize(fd int) (int64, error) {
	return noEINTR1(func() (int64, error) { return unix.Seek(fd, 0, unix.SEEK_END) })
}
