package node

import (
	"context"
	"errors"
	"os"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

// EnsureMounted mounts what is on dev at the staging path, after making what is missing.
func (s *Service) ensureMounted(ctx context.Context, rec *record, dev Device, epoch int64) error {
	v := rec.Volume
	device, err := s.contentDevice(v, dev)
	if err != nil {
		return err
	}
	s.step("partitioned")
	m, mounted, err := s.Mounts.At(v.StagingPath)
	switch {
	case err != nil:
		return err
	case mounted && m.Source == device:
		return nil
	case mounted:
		return fault.New(fault.Precondition, "unmount it", "%s at %s is mounted where volume %s is to be staged",
			m.Source, v.StagingPath, v.ID)
	}
	if err := s.ensureFormatted(ctx, rec, device, epoch); err != nil {
		return err
	}
	s.step("formatted")
	p := Preparation{ReadOnly: v.ReadOnly, Copy: v.Copy, DiskUUID: rec.UUID}
	if err := s.FileSystems.Prepare(ctx, device, v.FSType, p); err != nil {
		return err
	}
	if err := os.MkdirAll(v.StagingPath, 0o750); err != nil {
		return fault.Wrap(err, "make the staging directory")
	}
	options := slices.Clone(v.Options)
	if v.ReadOnly {
		options = append([]string{"ro"}, options...)
	}
	if v.FSType == "xfs" && !slices.Contains(options, "nouuid") {
		// A clone, or the same content on two nodes of one kernel, has the same UUID, and XFS mounts each UUID once.
		options = append(options, "nouuid")
	}
	if err := s.Mounts.Mount(device, v.StagingPath, v.FSType, options); err != nil {
		return err
	}
	if v.ReadOnly || v.FSType == "ext4" { // which grew before
		return nil
	}
	s.step("mounted ungrown")
	// The disk may be larger than its source was, and nobody asks for the expansion of a new volume. What has its device's
	// size already stays as it is.
	err = s.FileSystems.Grow(ctx, device, v.StagingPath, v.FSType)
	if errors.Is(err, fault.Precondition) { // it works, smaller than its disk
		s.Recorder.Event(ctx, v.ID, true, "GrowFailed", err.Error())
		return nil
	}
	return err
}

// ContentDevice is the device the file system is on: the disk's or its partition's.
func (s *Service) contentDevice(v stage.Volume, dev Device) (string, error) {
	if v.Partition != stage.PartitionGPT {
		return dev.Path, nil
	}
	start, length, err := s.Partitions.Ensure(dev.Path, v.ReadOnly)
	if err == nil && v.Copy && !v.ReadOnly { // it may be larger than its source was
		start, length, err = s.Partitions.Grow(dev.Path)
	}
	if err != nil {
		return "", fault.Wrap(err, "find the partition of volume %s", v.ID)
	}
	s.step("table")
	return s.Devices.Partition(dev, start, length)
}

// EnsureFormatted makes the file system on a device that holds nothing. The record says so first, so that the half-made
// file system of a killed mkfs is known to be nobody's data.
func (s *Service) ensureFormatted(ctx context.Context, rec *record, device string, epoch int64) error {
	v := rec.Volume
	there, err := s.FileSystems.Probe(device)
	if err != nil {
		return fault.Wrap(err, "look at what is on volume %s", v.ID)
	}
	switch {
	case there == v.FSType && !rec.Formatting:
		return nil
	case there != "" && !rec.Formatting && there != v.FSType:
		what := "a file system of type " + there
		if there == Unknown {
			what = "data that is no file system"
		}
		return fault.New(fault.Precondition, "use a StorageClass with the type of what is there, or volumeMode Block to reach the data; "+
			"a disk that holds anything is never formatted", "volume %s is to be mounted as %s and holds %s", v.ID, v.FSType, what)
	case v.ReadOnly:
		return fault.New(fault.Precondition, "write it first, through a ReadWriteOnce claim",
			"volume %s is empty and to be mounted read-only", v.ID)
	}
	if !rec.Formatting {
		rec.Formatting, rec.Epoch = true, epoch
		if err := s.journal.save(rec); err != nil {
			return err
		}
	}
	s.step("formatting")
	if err := s.FileSystems.Make(ctx, device, v.FSType); err != nil {
		return err
	}
	s.step("made")
	rec.Formatting = false
	return s.journal.save(rec)
}

// stillFormatting decides whether the record's Formatting holds for an attachment: it does if nobody else can have had
// the disk since. In doubt what is on the disk is somebody's.
func (s *Service) stillFormatting(rec *record, epoch int64) error {
	if !rec.Formatting || epoch == rec.Epoch {
		return nil
	}
	if epoch == rec.Epoch+1 {
		rec.Epoch = epoch
	} else {
		rec.Formatting = false
	}
	return s.journal.save(rec)
}

// Unformat empties a disk again on which a file system was begun and not finished, attaching it for that if it must: the
// next node that stages it would find content that is no file system, and refuse it.
func (s *Service) unformat(ctx context.Context, rec *record) error {
	if !rec.Formatting || rec.Staged {
		return nil
	}
	dev, _, err := s.ensureAttached(ctx, rec)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dev.Close()
	if !rec.Formatting {
		return nil
	}
	device, err := s.contentDevice(rec.Volume, dev)
	if err != nil {
		return err
	}
	if _, mounted, err := s.Mounts.At(rec.Volume.StagingPath); err != nil || mounted {
		return err // a mounted file system was finished
	}
	if err := s.FileSystems.Clear(device); err != nil {
		return fault.Wrap(err, "empty volume %s again", rec.Volume.ID)
	}
	s.step("cleared")
	rec.Formatting = false
	return s.journal.save(rec)
}
