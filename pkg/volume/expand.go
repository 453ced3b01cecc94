package volume

import (
	"context"
	"errors"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
)

// Expand grows the disk to at least size bytes. server is the worker that serves it on this host, nil when it is not
// attached here. Steps:
//
//  0. a frozen head (detached) is not grown: growFrozen
//  1. commit that the disk is growing (detached: with the next epoch)   crash: whoever opens it next finishes 2 and 3
//  2. grow the files
//  3. commit the new capacity (detached: released)
//
// Kinds: NotFound, OutOfRange, NoSpace, InProgress, InUse (attached elsewhere).
func (v *Volumes) Expand(ctx context.Context, id string, size int64, server Grower) (host.Disk, error) {
	if err := host.CheckSize(size); err != nil {
		return host.Disk{}, err
	}
	s, err := v.begin(ctx, id, "expand")
	if err != nil {
		return host.Disk{}, err
	}
	defer s.end()
	rec, m, err := s.read()
	if err = living(id, m, err); err != nil {
		return host.Disk{}, err
	}
	if server == nil && m.Size < size && (m.Head().Frozen || m.Merge != nil || m.Behind != "") {
		if m, err = v.growFrozen(ctx, s, rec, m, size); err != nil {
			return host.Disk{}, err
		}
	}
	if m.Size < size {
		if m, err = v.grow(ctx, s.Volume, rec, m, size, server); err != nil {
			return host.Disk{}, err
		}
		v.log.Info("disk expanded", "disk", id, "size", m.Size)
	}
	return v.describe(s.Volume, rec, m), nil
}

// growFrozen gives a disk whose head must not be written a larger one, and finishes what was interrupted. A head that could be
// thawed is left to be grown. Steps:
//
//  1. hold the disk
//  2. make it writable: a child of the new size is committed    crash: held, and larger
//  3. release it
func (v *Volumes) growFrozen(ctx context.Context, s *session, rec datastore.Record, m datastore.Manifest, size int64) (datastore.Manifest, error) {
	m, _, err := v.hold(ctx, s, rec, m)
	if err != nil {
		return m, fault.Wrap(err, "expand disk %s", s.ID())
	}
	m, err = v.writable(ctx, s.Volume, m, size)
	if errors.Is(err, fault.Poisoned) {
		return m, err
	}
	if rerr := v.let(s, m); rerr != nil {
		return m, errors.Join(err, rerr)
	}
	m, cerr := current(s.Volume)
	return m, errors.Join(err, cerr)
}

func (v *Volumes) grow(ctx context.Context, vol *datastore.Volume, rec datastore.Record, m datastore.Manifest, size int64, server Grower) (datastore.Manifest, error) {
	var err error
	if server != nil {
		if err := v.serving(vol.ID(), m); err != nil {
			return m, err
		}
		m.State = lease.Next(m.State)
	} else if m.State, _, err = lease.Acquire(m.State, v.me); err != nil {
		return m, fault.Wrap(err, "expand disk %s", vol.ID())
	}
	m.Growing = max(size, m.Growing)
	if err := vol.Commit(m); err != nil {
		return m, lost(vol.ID(), err)
	}
	if server != nil {
		err = server.Grow(ctx, m.Growing)
	} else {
		err = v.engine.Grow(ctx, vol.Dir(), m.Links, m.Growing, host.DiskFormat(rec.Format))
	}
	if errors.Is(err, fault.Poisoned) || server != nil && unanswered(err) {
		// What the descriptors say now may not survive, or may not be the end of it: the disk stays growing and held. Whoever
		// opens it next, or a repeated Expand, finishes.
		return m, fault.Wrap(err, "expand disk %s to %d bytes", vol.ID(), m.Growing)
	}
	next, serr := v.settle(ctx, vol, m, server == nil)
	return next, errors.Join(fault.Wrap(err, "expand disk %s to %d bytes", vol.ID(), m.Growing), serr)
}

// unanswered tells that a worker may still be at the growth, or has died at an unknown point of it.
func unanswered(err error) bool {
	kind := fault.KindOf(err)
	return kind == fault.Timeout || kind == fault.Unavailable
}

// settle is step 3: the manifest says what the descriptors say now, whatever the growth did.
func (v *Volumes) settle(ctx context.Context, vol *datastore.Volume, m datastore.Manifest, release bool) (datastore.Manifest, error) {
	// A rename whose answer was lost has happened, but nobody has synced it.
	err := vol.Dir().Sync()
	var links []datastore.Link
	if err == nil {
		links, err = v.engine.Inspect(ctx, vol.Dir(), m.Links)
	}
	if err != nil {
		return m, fault.Wrap(err, "disk %s after its growth", vol.ID())
	}
	m = withLinks(m, links)
	// What did not grow stays as it is: a full datastore must not keep the disk from being attached.
	m.Growing = 0
	m.State = lease.Next(m.State)
	m.Released = release
	return m, lost(vol.ID(), vol.Commit(m))
}

// withLinks is m with what the descriptors say. Frozen is the manifest's alone. The content ID of a snapshot is that of its
// link, which a merge into it may change.
func withLinks(m datastore.Manifest, links []datastore.Link) datastore.Manifest {
	old := m
	m.Links = slices.Clone(links)
	for i, l := range m.Links {
		if j := old.Index(l.Descriptor); j >= 0 {
			m.Links[i].Frozen = old.Links[j].Frozen
		}
	}
	m.Snapshots = slices.Clone(m.Snapshots)
	for i, s := range m.Snapshots {
		if j := m.Index(s.Link); j >= 0 {
			m.Snapshots[i].CID = m.Links[j].CID
		}
	}
	m.Size = links[len(links)-1].Size
	m.Steps = nil
	for i := 1; i < len(links); i++ {
		if links[i].Size != links[i-1].Size {
			m.Steps = append(m.Steps, datastore.Step{Link: i, From: links[i-1].Size, To: links[i].Size})
		}
	}
	return m
}
