package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

// Publish:
//
//  1. add the target to the record   died after: Unpublish or the next Publish finds it; a target without a mount is no
//     publication (pruneTargets)
//  2. make the target                died after: a directory or file that Unpublish removes
//  3. bind                           died after: published
func (s *Service) Publish(ctx context.Context, p stage.Publication) error {
	unlock, err := s.locks.TryLock(p.ID, "publish")
	if err != nil {
		return err
	}
	defer unlock()
	rec, source, err := s.staged(p)
	if err != nil {
		return err
	}
	if err := s.pruneTargets(rec); err != nil {
		return err
	}
	if old, ok := rec.target(p.Target); ok {
		if old.ReadOnly != p.ReadOnly {
			return fault.New(fault.Exists, "unpublish it first", "volume %s is published at %s already, read-only: %v",
				p.ID, p.Target, old.ReadOnly)
		}
		return nil
	}
	for _, old := range rec.Targets {
		if p.SinglePath || old.SinglePath {
			return fault.New(fault.Precondition, "end the other workload; the access mode is for one",
				"volume %s is published at %s already", p.ID, old.Target)
		}
	}
	rec.Targets = append(rec.Targets, publication{Target: p.Target, ReadOnly: p.ReadOnly, SinglePath: p.SinglePath})
	if err := s.journal.save(rec); err != nil {
		return err
	}
	s.step("target recorded")
	if err := s.bind(p, source); err != nil {
		rec.dropTarget(p.Target)
		return errors.Join(err, s.journal.save(rec))
	}
	s.step("published")
	return nil
}

// Staged is the record of a staged volume and what a target shows of it.
func (s *Service) staged(p stage.Publication) (*record, string, error) {
	notStaged := func(why string) error {
		return fault.New(fault.Precondition, "stage it first", "volume %s is not staged at %s: %s", p.ID, p.StagingPath, why)
	}
	rec, err := s.journal.load(p.ID)
	switch {
	case err != nil:
		return nil, "", err
	case rec == nil:
		return nil, "", notStaged("it is not known here")
	case !rec.Staged || rec.Volume.StagingPath != p.StagingPath:
		return nil, "", notStaged("its staging is not finished, or is at " + rec.Volume.StagingPath)
	case rec.Volume.Mode != p.Mode:
		return nil, "", fault.New(fault.Precondition, "unstage it first", "volume %s is staged as %s", p.ID, describe(rec.Volume))
	case rec.Volume.ReadOnly && !p.ReadOnly:
		return nil, "", fault.New(fault.Precondition, "publish it read-only", "volume %s is staged read-only", p.ID)
	}
	if p.Mode == stage.Block {
		dev, found, err := s.Devices.Find(p.ID)
		dev.Close()
		if err == nil && !found {
			err = notStaged("its device is gone")
		}
		// A device that others on this node write may be published read-only. The read-only mount over its file keeps nobody from
		// writing (a mount's flag does not reach special files); the kubelet gives such a container the device without the
		// right to write (makeBlockVolumes), and the kernel's device cgroup enforces that.
		return rec, dev.Path, err
	}
	if _, mounted, err := s.Mounts.At(p.StagingPath); err != nil || !mounted {
		return nil, "", errors.Join(err, notStaged("nothing is mounted there"))
	}
	return rec, p.StagingPath, nil
}

// Bind makes the target and mounts the source on it; a failure removes the target if this call made it.
func (s *Service) bind(p stage.Publication, source string) error {
	made, err := makeTarget(p.Target, p.Mode)
	if err != nil {
		return fault.Wrap(err, "make the target of volume %s", p.ID)
	}
	s.step("target made")
	if _, mounted, err := s.Mounts.At(p.Target); err != nil {
		return err
	} else if mounted {
		return fault.New(fault.Precondition, "unmount it", "something else is mounted at %s", p.Target)
	}
	if err := s.Mounts.Bind(source, p.Target, p.ReadOnly, p.Options); err != nil {
		if made {
			os.Remove(p.Target)
		}
		return err
	}
	return nil
}

func makeTarget(path string, mode stage.Mode) (made bool, err error) {
	if mode == stage.Mount {
		if _, err := os.Lstat(path); err == nil {
			return false, nil
		}
		return true, os.MkdirAll(path, 0o750)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return false, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o640)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

// Unpublish unmounts and removes the target, then forgets it.
func (s *Service) Unpublish(ctx context.Context, id, target string) error {
	unlock, err := s.locks.TryLock(id, "unpublish")
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := s.journal.load(id)
	if err != nil {
		return err
	}
	if err := s.unmountAll(target); err != nil {
		return err
	}
	s.step("target unmounted")
	// Never recursively: what is in a target that is not a mount is not ours.
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Precondition, "see what is in it, and remove that", "remove the target of volume %s: %w", id, err)
	}
	if rec == nil {
		return nil
	}
	if _, ok := rec.target(target); !ok {
		return nil
	}
	rec.dropTarget(target)
	return s.journal.save(rec)
}

// PruneTargets forgets targets where nothing is mounted: a restart of the machine, or a death before the mount.
func (s *Service) pruneTargets(rec *record) error {
	for _, t := range append([]publication(nil), rec.Targets...) {
		_, mounted, err := s.Mounts.At(t.Target)
		if err != nil {
			return err
		}
		if !mounted {
			rec.dropTarget(t.Target)
		}
	}
	return nil
}
