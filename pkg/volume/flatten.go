package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
)

// Flatten makes one stand-alone base of a disk that nobody has attached, of the kind that its specification asks for. It
// shares nothing with other disks then. Steps:
//
//  1. hold the disk
//  2. copy the content into a new base, durable       crash: unreferenced files, collected by the next attach
//  3. commit it as the only link, released
//  4. remove the former links                         crash: unreferenced files
//
// Kinds: NotFound, Precondition (it has snapshots), InUse, InProgress, NoSpace, Damaged, Timeout (ctx).
func (v *Volumes) Flatten(ctx context.Context, id string, progress func(done, total int64)) (host.Disk, error) {
	s, err := v.begin(ctx, id, "flatten")
	if err != nil {
		return host.Disk{}, err
	}
	defer s.end()
	rec, m, err := s.read()
	if err = living(id, m, err); err != nil {
		return host.Disk{}, err
	}
	if len(m.Snapshots) > 0 {
		return host.Disk{}, fault.New(fault.Precondition, "Delete them, or restore into a new disk with cloneMode full.",
			"disk %s has %d snapshots, which need its links", id, len(m.Snapshots))
	}
	if len(m.Links) > 1 || !free(m) {
		if m, err = v.flatten(ctx, s, rec, m, progress); err != nil {
			return host.Disk{}, fault.Wrap(err, "flatten disk %s", id)
		}
		v.log.Info("disk flattened", "disk", id, "size", m.Size)
	}
	return v.describe(s.Volume, rec, m), nil
}

func (v *Volumes) flatten(ctx context.Context, s *session, rec datastore.Record, m datastore.Manifest, progress func(done, total int64)) (datastore.Manifest, error) {
	m, _, err := v.hold(ctx, s, rec, m)
	if err != nil {
		return m, err
	}
	old, next := m, m
	base, err := v.engine.Flatten(ctx, s.Dir(), m.Links, NewLink{
		Descriptor: baseName(m), UUID: rec.UUID, Size: m.Size, Format: host.DiskFormat(rec.Format), Type: host.DiskType(rec.Type),
	}, progress)
	if err == nil {
		next = withLinks(m, []datastore.Link{base})
	} else if _, cerr := s.Collect(m); cerr != nil { // while the disk is held: afterwards others make files
		v.log.Warn("what a failed copy left was not removed; the next attach will", "disk", s.ID(), "error", cerr)
	}
	next.State = lease.Next(next.State)
	next.Released = true
	if cerr := s.Commit(next); cerr != nil {
		return m, errors.Join(err, lost(s.ID(), cerr))
	}
	if err != nil {
		return next, err
	}
	v.dropGone(s.Volume, old, next)
	return next, nil
}

// baseName is a descriptor's name for another base, as VMware numbers the disks of a machine.
func baseName(m datastore.Manifest) string {
	name := headDescriptor
	for n := 1; m.Index(name) >= 0; n++ {
		name = fmt.Sprintf("disk_%d.vmdk", n)
	}
	return name
}
