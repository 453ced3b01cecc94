package loop

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Options say how a file becomes a block device.
type Options struct {
	BlockSize int   // logical block size in bytes, 512..4096; 0: 512
	Offset    int64 // first byte of the file that the device shows, a multiple of BlockSize
	SizeLimit int64 // bytes shown; 0: to the end of the file
	ReadOnly  bool
	DirectIO  bool // past the page cache of the backing file
	AutoClear bool // detach when the last opener and mount are gone
	PartScan  bool // let the kernel look for partitions
}

// Device is an attached loop device.
type Device struct {
	File   *os.File // of the block device, read-only if the device is
	Number int
}

// Path is the device's node, /dev/loopN.
func (d *Device) Path() string { return devicePath(d.Number) }

func devicePath(n int) string { return fmt.Sprintf("/dev/loop%d", n) }

// attachTries bounds how often another process may snatch the free device between asking for it and taking it.
const attachTries = 64

// Attach makes backing a block device. backing may be closed afterwards. Needs CAP_SYS_ADMIN.
// Kinds: Unsupported (no loop driver), Exhausted (no device is free), Invalid.
func Attach(backing *os.File, o Options) (*Device, error) {
	bfd, err := sys.Fd(backing)
	if err != nil {
		return nil, err
	}
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fault.New(fault.Unsupported, "load the kernel module loop and give the node plugin the host's /dev",
			"loop devices are not available: %w", err)
	}
	defer func() { _ = ctl.Close() }()
	cfd, err := sys.Fd(ctl)
	if err != nil {
		return nil, err
	}
	for range attachTries {
		n, err := unix.IoctlRetInt(cfd, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fault.New(fault.Exhausted, "detach disks from this node", "no free loop device: %w", err)
		}
		d, err := configure(n, bfd, o)
		if errors.Is(err, unix.EBUSY) { // somebody else was faster
			continue
		}
		if err != nil {
			return nil, fault.Wrap(err, "attach %s to loop%d", backing.Name(), n)
		}
		return d, nil
	}
	return nil, fault.New(fault.Exhausted, "try again", "another process took every loop device that was free")
}

func configure(n, backing int, o Options) (*Device, error) {
	f, err := openNode(n, o.ReadOnly)
	if err != nil {
		return nil, err
	}
	fd, err := sys.Fd(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	cfg := unix.LoopConfig{Fd: uint32(backing), Size: uint32(o.BlockSize)}
	if cfg.Size == 0 {
		cfg.Size = 512
	}
	cfg.Info.Offset, cfg.Info.Sizelimit = uint64(o.Offset), uint64(o.SizeLimit)
	for flag, on := range map[uint32]bool{unix.LO_FLAGS_READ_ONLY: o.ReadOnly, unix.LO_FLAGS_DIRECT_IO: o.DirectIO,
		unix.LO_FLAGS_AUTOCLEAR: o.AutoClear, unix.LO_FLAGS_PARTSCAN: o.PartScan} {
		if on {
			cfg.Info.Flags |= flag
		}
	}
	if err := unix.IoctlLoopConfigure(fd, &cfg); err != nil {
		f.Close()
		return nil, os.NewSyscallError("LOOP_CONFIGURE", err)
	}
	return &Device{File: f, Number: n}, nil
}

// openNode opens /dev/loopN. In a container whose /dev is its own, devices that the kernel made later have no node:
// then it makes one.
func openNode(n int, readOnly bool) (*os.File, error) {
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(devicePath(n), flags, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	dev, err := deviceNumber(n)
	if err != nil {
		return nil, err
	}
	if err := unix.Mknod(devicePath(n), unix.S_IFBLK|0o660, int(dev)); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "mknod", Path: devicePath(n), Err: err}
	}
	return os.OpenFile(devicePath(n), flags, 0)
}

// Open opens an attached loop device by its path. Kinds: NotFound, Invalid (not a loop device), Precondition (detached).
func Open(path string, readOnly bool) (*Device, error) {
	n, ok := numberOf(path)
	if !ok {
		return nil, fault.New(fault.Invalid, "", "%s is not the path of a loop device", path)
	}
	if _, attached, err := backingOf(n); err != nil || !attached {
		return nil, errors.Join(err, fault.New(fault.Precondition, "attach it first", "%s is not attached", path))
	}
	f, err := openNode(n, readOnly)
	if err != nil {
		return nil, fault.Wrap(err, "open %s", path)
	}
	return &Device{File: f, Number: n}, nil
}

// SetCapacity makes the device as large as its backing file is now, also while it is mounted.
func (d *Device) SetCapacity() error {
	fd, err := sys.Fd(d.File)
	if err != nil {
		return err
	}
	return fault.Wrap(os.NewSyscallError("LOOP_SET_CAPACITY", unix.IoctlSetInt(fd, unix.LOOP_SET_CAPACITY, 0)),
		"resize %s", d.Path())
}

// Close closes the descriptor; with AutoClear that detaches the device once nobody else uses it.
func (d *Device) Close() error { return d.File.Close() }

// Detach closes the device and detaches it: at once, or when its other users are gone (the driver then sets autoclear).
// Detached by somebody else already is success.
func (d *Device) Detach() error {
	fd, err := sys.Fd(d.File)
	if err != nil {
		return err
	}
	err = unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0)
	if errors.Is(err, unix.ENXIO) {
		err = nil
	}
	return errors.Join(fault.Wrap(os.NewSyscallError("LOOP_CLR_FD", err), "detach %s", d.Path()), d.Close())
}

// pollEvery is how often a release is looked for; the driver announces none.
const pollEvery = 5 * time.Millisecond
