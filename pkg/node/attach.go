package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

// EnsureAttached returns the device of an attached disk, attaching it first where it is not:
//
//	a. make the kernel's end, a FUSE session  died after: it died with the process
//	b. hostd attaches and serves it           died after: hostd has it open and no device is there
//	c. make the block device                  died after: an autoclear device disappears, another one is found
//	d. close the session's mount
//
// Only both together, hostd's attachment and the kernel's device, are an attached disk. One without the other is what a
// death between b and c, or the loss of both holders of the descriptors, left: it is taken apart and attached anew. So is
// a mount of a disk that is neither.
func (s *Service) ensureAttached(ctx context.Context, rec *record) (dev Device, epoch int64, err error) {
	id := rec.Volume.ID
	att, attached, err := s.attached(ctx, id)
	if err != nil {
		return Device{}, 0, err
	}
	dev, found, err := s.Devices.Find(id)
	if err != nil {
		return Device{}, 0, err
	}
	switch {
	case attached && found && att.ReadOnly != rec.Volume.ReadOnly:
		dev.Close()
		return Device{}, 0, fault.New(fault.Precondition, "unstage it first", "disk %s is attached in the other mode (read-only: %v)",
			id, att.ReadOnly)
	case attached && found:
	default:
		dev.Close()
		left, err := s.mountLeft(rec)
		if err != nil {
			return Device{}, 0, err
		}
		if attached || found || left {
			if err := s.takeApart(ctx, rec); err != nil {
				return Device{}, 0, fault.Wrap(err, "disk %s lost its server or its device", id)
			}
		}
		if att, dev, err = s.attach(ctx, rec); err != nil {
			return Device{}, 0, err
		}
	}
	err = s.stillFormatting(rec, att.Epoch)
	if err == nil {
		err = s.link(rec, att, dev)
	}
	if err != nil {
		dev.Close()
		return Device{}, 0, err
	}
	return dev, att.Epoch, nil
}

// mountLeft: the volume was staged, and what it was mounted from is gone: the hypervisor removed the disk.
func (s *Service) mountLeft(rec *record) (bool, error) {
	if !rec.Staged || rec.Volume.Mode != stage.Mount {
		return false, nil
	}
	_, mounted, err := s.Mounts.At(rec.Volume.StagingPath)
	return mounted, err
}

func (s *Service) attach(ctx context.Context, rec *record) (host.Attachment, Device, error) {
	id := rec.Volume.ID
	session, err := s.Devices.NewSession(id)
	if err != nil {
		return host.Attachment{}, Device{}, err
	}
	defer session.Close()
	s.step("session")
	req := host.AttachRequest{ID: id, ReadOnly: rec.Volume.ReadOnly, Transport: rec.Volume.Transport}
	done := s.Holder.attaching(id)
	defer done()
	att, err := s.Hostd.Attach(ctx, req, session.Device())
	if err != nil {
		return host.Attachment{}, Device{}, fault.Wrap(err, "attach disk %s", id)
	}
	s.step("served")
	if err := s.Holder.Add(ctx, host.Held{Attachment: att, Device: session.Device()}); err != nil {
		s.Log.Warn("Hostd alone holds a disk until it answers again", "volume", id, "err", err)
	}
	export, cancel := context.WithTimeout(ctx, exportTime)
	defer cancel()
	// A file system's mount keeps its device, and the device goes with it. A raw block device must stay while the pod
	// has it closed. That a file system is mounted read-only is the mount's option: its journal may have to be replayed.
	dev, err := session.Export(export, ExportOptions{ReadOnly: rec.Volume.ReadOnly && rec.Volume.Mode == stage.Block, AutoClear: rec.Volume.Mode == stage.Mount,
		Partitions: rec.Volume.Partition == stage.PartitionGPT})
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return host.Attachment{}, Device{}, errors.Join(fault.Wrap(err, "make the block device of %s", id), s.detach(undo, rec))
	}
	s.step("exported")
	s.Recorder.Attached(ctx, att)
	return att, dev, nil
}

// link makes the disk's stable name, as udev would for a SCSI disk: wwn-0x and the disk's ddb.uuid (VMware shows it so to
// a guest whose disk.EnableUUID is TRUE). A hostd that gives the disk another uuid than before gets no second link.
func (s *Service) link(rec *record, att host.Attachment, dev Device) error {
	if att.UUID == "" || s.LinkDir == "" {
		return nil
	}
	if rec.UUID != att.UUID {
		rec.UUID = att.UUID
		if err := s.journal.save(rec); err != nil {
			return err
		}
	}
	s.step("link recorded")
	path := s.linkPath(rec)
	if old, err := os.Readlink(path); err == nil && old == dev.Path {
		return nil
	}
	if err := os.MkdirAll(s.LinkDir, 0o755); err != nil {
		return fault.Wrap(err, "make the directory of links")
	}
	temp := path + tempSuffix
	os.Remove(temp)
	if err := os.Symlink(dev.Path, temp); err != nil {
		return fault.Wrap(err, "link %s", path)
	}
	if err := os.Rename(temp, path); err != nil {
		os.Remove(temp)
		return fault.Wrap(err, "link %s", path)
	}
	return nil
}

func (s *Service) linkPath(rec *record) string {
	return filepath.Join(s.LinkDir, "wwn-0x"+filepath.Base(rec.UUID))
}

// Dismantle undoes everything that Stage does, in the opposite order, each step only if there is something to undo. The
// record goes last: whatever this process dies between, the next Unstage or Stage finds it and continues.
func (s *Service) dismantle(ctx context.Context, id string, rec *record) error {
	if err := s.unformat(ctx, rec); err != nil {
		return err
	}
	if err := s.takeApart(ctx, rec); err != nil {
		return err
	}
	s.step("detached")
	return s.journal.remove(id)
}

// takeApart is dismantle without the record. Kinds: InUse.
func (s *Service) takeApart(ctx context.Context, rec *record) error {
	if err := s.pruneTargets(rec); err != nil {
		return err
	}
	if len(rec.Targets) > 0 {
		return fault.New(fault.InUse, "end the workload that uses it, then try again", "volume %s is still published at %s",
			rec.Volume.ID, rec.Targets[0].Target)
	}
	if err := s.letGoOn(ctx, rec.Volume.ID); err != nil {
		return err
	}
	if err := s.unmountAll(rec.Volume.StagingPath); err != nil {
		return err
	}
	s.step("unmounted")
	if rec.UUID != "" && s.LinkDir != "" {
		os.Remove(s.linkPath(rec))
	}
	return s.detach(ctx, rec)
}

// Detach takes the device away and has hostd close the disk. Poisoned is closed: what was lost is lost, and somebody
// has to hear of it.
func (s *Service) detach(ctx context.Context, rec *record) error {
	id := rec.Volume.ID
	release, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	if err := s.Devices.Release(release, id); err != nil {
		return err
	}
	s.step("released")
	done := s.Holder.detaching(id)
	defer done()
	err := s.Hostd.Detach(ctx, id)
	if errors.Is(err, fault.Poisoned) {
		s.Recorder.Event(ctx, id, true, "DataMayBeLost", err.Error())
		s.Log.Error("A disk was closed after a failed sync: what was not flushed may be lost", "volume", id, "err", err)
		err = nil
	}
	if err != nil && !errors.Is(err, fault.NotFound) {
		return fault.Wrap(err, "detach disk %s", id)
	}
	s.Holder.Drop(id)
	s.Recorder.Detached(ctx, id)
	return nil
}

// unmountAll unmounts path as often as something is mounted there: a repeated mount of another process stacks.
func (s *Service) unmountAll(path string) error {
	const depth = 16
	for range depth {
		_, mounted, err := s.Mounts.At(path)
		if err != nil || !mounted {
			return err
		}
		if err := s.Mounts.Unmount(path); err != nil {
			return err
		}
	}
	return fault.New(fault.InUse, "see /proc/mounts for who mounts there", "%s is mounted again and again", path)
}
