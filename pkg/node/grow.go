package node

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

// At is the record of the volume that is staged or published at path. Kinds: NotFound.
func (s *Service) at(id, path string) (*record, error) {
	rec, err := s.journal.load(id)
	if err != nil {
		return nil, err
	}
	if rec == nil || !rec.Staged {
		return nil, fault.New(fault.NotFound, "stage it first", "volume %s is not on this node", id)
	}
	if _, ok := rec.target(path); !ok && path != rec.Volume.StagingPath {
		return nil, fault.New(fault.NotFound, "", "volume %s is not at %s", id, path)
	}
	return rec, nil
}

// Expand grows what is on this node after the disk, from below: the device's size as the kernel caches it, the device,
// the partition, the file system. Each can be repeated.
func (s *Service) Expand(ctx context.Context, id, path string, size int64) (int64, error) {
	unlock, err := s.locks.TryLock(id, "expand")
	if err != nil {
		return 0, err
	}
	defer unlock()
	rec, err := s.at(id, path)
	if err != nil {
		return 0, err
	}
	att, err := s.Hostd.Grown(ctx, id)
	if err != nil {
		return 0, fault.Wrap(err, "grow volume %s", id)
	}
	if att.Size < size {
		return 0, fault.New(fault.OutOfRange, fmt.Sprintf("allowed: at most %d; expand the disk first (ControllerExpandVolume)", att.Size),
			"volume %s has a disk of %d bytes, %d are asked for", id, att.Size, size)
	}
	s.step("grown")
	dev, found, err := s.Devices.Find(id)
	if err != nil {
		return 0, err
	}
	if !found {
		return 0, fault.New(fault.Precondition, "unstage it and stage it again", "volume %s lost its device", id)
	}
	defer dev.Close()
	if err := s.Devices.Resize(dev); err != nil {
		return 0, err
	}
	s.step("resized")
	if rec.Volume.Mode == stage.Block || rec.Volume.ReadOnly {
		return att.Size, nil
	}
	device := dev.Path
	if rec.Volume.Partition == stage.PartitionGPT {
		start, length, err := s.Partitions.Grow(dev.Path)
		if err != nil {
			return 0, err
		}
		s.step("partition grown")
		if device, err = s.Devices.Partition(dev, start, length); err != nil {
			return 0, err
		}
	}
	if err := s.FileSystems.Grow(ctx, device, rec.Volume.StagingPath, rec.Volume.FSType); err != nil {
		s.Recorder.Event(ctx, id, true, "GrowFailed", err.Error())
		return 0, err
	}
	return att.Size, nil
}

// deviceUsage is the size of the device. The path may be any at which the device is: the kubelet asks for its own
// mount of it (volumeDevices/<volume>/dev/<pod>), not for the one it had published.
func (s *Service) deviceUsage(rec *record, path string) (stage.Usage, error) {
	id := rec.Volume.ID
	dev, found, err := s.Devices.Find(id)
	if err != nil {
		return stage.Usage{}, err
	}
	defer dev.Close()
	if !found {
		return stage.Usage{}, fault.New(fault.NotFound, "unstage it and stage it again", "volume %s lost its device", id)
	}
	if _, ok := rec.target(path); !ok && path != rec.Volume.StagingPath && !sameDevice(path, dev.Path) {
		return stage.Usage{}, fault.New(fault.NotFound, "", "volume %s is not at %s", id, path)
	}
	return stage.Usage{Mode: stage.Block, Total: dev.Size}, nil
}

func sameDevice(a, b string) bool {
	var x, y unix.Stat_t
	return unix.Stat(a, &x) == nil && unix.Stat(b, &y) == nil &&
		x.Mode&unix.S_IFMT == unix.S_IFBLK && y.Mode&unix.S_IFMT == unix.S_IFBLK && x.Rdev == y.Rdev
}

// Usage takes no lock: it changes nothing, and a volume that goes away meanwhile is not found.
func (s *Service) Usage(_ context.Context, id, path string) (stage.Usage, error) {
	rec, err := s.journal.load(id)
	if err == nil && rec != nil && rec.Staged && rec.Volume.Mode == stage.Block {
		return s.deviceUsage(rec, path)
	}
	if _, err = s.at(id, path); err != nil {
		return stage.Usage{}, err
	}
	if _, mounted, err := s.Mounts.At(path); err != nil || !mounted {
		if err == nil {
			err = fault.New(fault.NotFound, "", "volume %s is not mounted at %s", id, path)
		}
		return stage.Usage{}, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return stage.Usage{}, fault.Wrap(err, "statfs %s", path)
	}
	block := st.Bsize
	u := stage.Usage{Mode: stage.Mount, Total: int64(st.Blocks) * block, Free: int64(st.Bavail) * block,
		Used: int64(st.Blocks-st.Bfree) * block, Inodes: int64(st.Files), InodesFree: int64(st.Ffree)}
	u.InodesUsed = u.Inodes - u.InodesFree
	return u, nil
}
