package csi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/export/fuse"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/loop"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/node"
	"github.com/vmdk-csi/vmdk-csi/pkg/node/blkpg"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker/table"
)

// Devices are loop devices over the file of a FUSE session, which is named by the disk's id and the node: that name is how
// a device is found again, whoever made it.
type Devices struct {
	// Node tells the devices of this node from those of another one of the same kernel: nodes in containers share its
	// loop devices, and two of them may read one disk. May be empty.
	Node string
}

func (v Devices) fileName(id string) string {
	if v.Node == "" {
		return id
	}
	sum := sha256.Sum256([]byte(v.Node))
	return id + "@" + hex.EncodeToString(sum[:4])
}

type session struct {
	fuse  *fuse.Session
	table *os.File
}

// NewSession makes a FUSE session and the pending table beside it.
func (v Devices) NewSession(id string) (node.Session, error) {
	f, err := fuse.NewSession(v.fileName(id))
	if err != nil {
		return nil, err
	}
	t, err := table.Create()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &session{fuse: f, table: t}, nil
}

func (s *session) Device() host.Device { return host.Device{Fuse: s.fuse.Dev, Table: s.table} }

func (s *session) Close() error { return errors.Join(s.fuse.Close(), s.table.Close()) }

func (s *session) Export(ctx context.Context, o node.ExportOptions) (node.Device, error) {
	flags := os.O_RDWR
	if o.ReadOnly {
		flags = os.O_RDONLY
	}
	file, err := s.fuse.OpenDisk(ctx, flags)
	if !o.ReadOnly && (errors.Is(err, unix.EROFS) || errors.Is(err, fault.ReadOnly)) { // a read-only attachment whose server keeps no writes
		o.ReadOnly = true
		file, err = s.fuse.OpenDisk(ctx, os.O_RDONLY)
	}
	if err != nil {
		return node.Device{}, err
	}
	defer file.Close() // the loop device keeps the file, and the file the session
	d, err := loop.Attach(file, loop.Options{ReadOnly: o.ReadOnly, DirectIO: true, AutoClear: o.AutoClear, PartScan: o.Partitions})
	if err != nil {
		return node.Device{}, err
	}
	return node.Device{Path: d.Path(), ReadOnly: o.ReadOnly, AutoClear: o.AutoClear, Hold: d}, nil
}

// Find finds the one device over the file of the disk.
func (v Devices) Find(id string) (node.Device, bool, error) {
	all, err := v.whole(id)
	if err != nil || len(all) == 0 {
		return node.Device{}, false, err
	}
	if len(all) > 1 {
		return node.Device{}, false, fault.New(fault.Precondition, "detach the devices that nothing uses (losetup -d)",
			"disk %s has more than one device: %s and %s", id, all[0].Path, all[1].Path)
	}
	a := all[0]
	d, err := loop.Open(a.Path, a.ReadOnly)
	if errors.Is(err, fault.Precondition) { // it went away by itself
		return node.Device{}, false, nil
	}
	if err != nil {
		return node.Device{}, false, err
	}
	// While it was not held it could become another disk's.
	if again, err := v.whole(id); err != nil || len(again) != 1 || again[0].Number != a.Number {
		return node.Device{}, false, errors.Join(err, d.Close())
	}
	return node.Device{Path: a.Path, ReadOnly: a.ReadOnly, AutoClear: a.AutoClear, Size: a.Size, Hold: d}, true, nil
}

func (v Devices) whole(id string) ([]loop.Attached, error) { return loop.FindByName(v.fileName(id)) }

// Has says whether disk id has a block device here, without opening it.
func (v Devices) Has(id string) (bool, error) {
	all, err := v.whole(id)
	return len(all) > 0, err
}

// Resize asks the loop driver for the size of the file.
func (Devices) Resize(d node.Device) error {
	l, ok := d.Hold.(*loop.Device)
	if !ok {
		return fault.New(fault.Internal, "", "%s is not held", d.Path)
	}
	return l.SetCapacity()
}

// Partition makes the partition device, whether or not the kernel has a parser.
func (Devices) Partition(d node.Device, start, length int64) (string, error) {
	return blkpg.Ensure(d.Path, start, length)
}

// Release detaches every device of the disk; a device that somebody has open is detached with its last user, and until
// then it is in use.
func (v Devices) Release(ctx context.Context, id string) error {
	all, err := v.whole(id)
	if err != nil {
		return err
	}
	for _, a := range all {
		if err := v.release(ctx, id, a); err != nil {
			return err
		}
	}
	return nil
}

// release detaches one device. One with autoclear goes with its last user in any case.
func (v Devices) release(ctx context.Context, id string, a loop.Attached) error {
	if !a.AutoClear {
		if err := v.detach(id, a); err != nil {
			return err
		}
	}
	err := loop.WaitReleased(ctx, a.Number, a.Backing)
	if errors.Is(err, fault.Timeout) {
		return fault.New(fault.InUse, "find who has it open or mounted (fuser, another mount namespace), end that, and try again",
			"%s of disk %s is still in use: %w", a.Path, id, err)
	}
	return err
}

func (v Devices) detach(id string, a loop.Attached) error {
	d, err := loop.Open(a.Path, a.ReadOnly)
	if errors.Is(err, fault.Precondition) || errors.Is(err, fault.NotFound) { // it went away by itself
		return nil
	}
	if err != nil {
		return err
	}
	// While it was not held it could become another disk's.
	again, err := v.whole(id)
	if err != nil || !slices.ContainsFunc(again, func(b loop.Attached) bool { return b.Number == a.Number }) {
		return errors.Join(err, d.Close())
	}
	return d.Detach()
}
