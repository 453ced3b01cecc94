package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd/guest"
	"github.com/vmdk-csi/vmdk-csi/pkg/node/blkpg"
)

// SCSIDevices are disks that a hypervisor adds to this machine when the disk is attached. Nothing is made here: the
// session is empty, and its export is the wait for the disk.
type SCSIDevices struct {
	Kernel guest.Kernel
	// Identify says by what a disk is recognized, attached or not. Kind: NotFound.
	Identify func(ctx context.Context, id string) (guest.Want, error)
}

var _ Devices = SCSIDevices{}

type scsiSession struct {
	devices SCSIDevices
	id      string
}

// NewSession has nothing to make.
func (v SCSIDevices) NewSession(id string) (Session, error) { return scsiSession{v, id}, nil }

func (scsiSession) Device() host.Device { return host.Device{} }
func (scsiSession) Close() error        { return nil }

// Export waits for the disk. Kinds: those of guest.Kernel.Wait.
func (s scsiSession) Export(ctx context.Context, o ExportOptions) (Device, error) {
	want, err := s.devices.Identify(ctx, s.id)
	if err != nil {
		return Device{}, err
	}
	d, err := s.devices.Kernel.Wait(ctx, want)
	if err != nil {
		return Device{}, fault.Wrap(err, "disk %s", s.id)
	}
	if o.ReadOnly && !d.ReadOnly {
		// The hypervisor takes writes of a read-only disk, and throws them away.
		if err := setReadOnly(d.Path); err != nil {
			return Device{}, fault.Wrap(err, "make %s read-only", d.Path)
		}
		d.ReadOnly = true
	}
	return scsiDevice(d)
}

func setReadOnly(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fd, err := sys.Fd(f)
	if err != nil {
		return err
	}
	return os.NewSyscallError("BLKROSET", unix.IoctlSetPointerInt(fd, unix.BLKROSET, 1))
}

// scsiDevice holds the disk: while a node is open, its name is not given to another disk.
func scsiDevice(d guest.Disk) (Device, error) {
	hold, err := os.Open(d.Path)
	if err != nil {
		return Device{}, fault.Wrap(err, "open %s", d.Path)
	}
	return Device{Path: d.Path, ReadOnly: d.ReadOnly, Size: d.Size, Hold: hold}, nil
}

// identifyTime bounds the question for a disk's identity where the caller gave no bound.
const identifyTime = 10 * time.Second

// Find finds the disk, which answers.
func (v SCSIDevices) Find(id string) (Device, bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), identifyTime)
	defer cancel()
	want, err := v.Identify(ctx, id)
	if errors.Is(err, fault.NotFound) {
		return Device{}, false, nil
	}
	if err != nil {
		return Device{}, false, err
	}
	d, found, err := v.Kernel.Find(want.Serial)
	if err != nil || !found {
		return Device{}, false, err
	}
	dev, err := scsiDevice(d)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) { // it went meanwhile
		return Device{}, false, nil
	}
	return dev, err == nil, err
}

// Resize asks the disk for its size.
func (v SCSIDevices) Resize(d Device) error {
	all, err := v.Kernel.Disks()
	for _, s := range all {
		if s.Path == d.Path {
			return v.Kernel.Resize(s)
		}
	}
	if err == nil {
		err = fault.New(fault.NotFound, "", "%s is gone", d.Path)
	}
	return err
}

// Partition makes the partition device, whether or not the kernel has a parser.
func (SCSIDevices) Partition(d Device, start, length int64) (string, error) {
	return blkpg.Ensure(d.Path, start, length)
}

const releaseLookEvery = 20 * time.Millisecond

// Release makes the kernel write back and forget the disk, and what it knows of it from before. It keeps nobody from whom it
// cannot know that he has the disk open: a mount and another exclusive user are seen, a program that reads it is not.
func (v SCSIDevices) Release(ctx context.Context, id string) error {
	want, err := v.Identify(ctx, id)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for {
		known, err := v.Kernel.Known(want.Serial)
		if err != nil || len(known) == 0 {
			return err
		}
		busy := ""
		for _, d := range known {
			switch err := flushUnused(d.Path); {
			case errors.Is(err, unix.EBUSY):
				busy = d.Path
				continue
			case errors.Is(err, unix.EIO):
				// A disk that was pulled out cannot be written back, and must go all the same.
				if _, alive, _ := v.Kernel.Find(want.Serial); alive {
					return fault.Wrap(err, "write back %s of disk %s", d.Path, id)
				}
			}
			if err := v.Kernel.Forget(d.Name); err != nil {
				return err
			}
		}
		select {
		case <-time.After(releaseLookEvery):
		case <-ctx.Done():
			if busy == "" {
				return fault.New(fault.InUse, "see the kernel log", "disk %s does not go away", id)
			}
			return fault.New(fault.InUse, "find who has it mounted (another mount namespace), end that, and try again",
				"%s of disk %s is still in use", busy, id)
		}
	}
}

// flushUnused writes back what the kernel has of the disk, if nobody has it mounted or open exclusively (EBUSY).
func flushUnused(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
