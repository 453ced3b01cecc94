package volume

import (
	"context"
	"errors"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
)

// DeleteSnapshot removes the snapshot; one that is not there is deleted already. Disks restored from it have names of their
// own for its files. Links that nobody needs any more are left to Consolidate; those of a retired disk above its last
// snapshot go at once. Steps:
//
//  1. commit the manifest without it, also when it never had it: who is about to make it loses (attached here: in the
//     same epoch; else under the next one, released). The last snapshot of a retired disk: commit "deleting".
//     crash: the name is taken; a repeated delete frees it
//  2. free the name
//  3. remove what is not needed any more        crash: unreferenced files, collected by the next attach or consolidation
//
// Kinds: InUse (another host has the disk attached), InProgress, Damaged.
func (v *Volumes) DeleteSnapshot(ctx context.Context, id string) error {
	rec, err := v.snapshotRecord(id)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	s, err := v.begin(ctx, rec.Disk, "delete a snapshot")
	if errors.Is(err, fault.NotFound) {
		return v.store.Free(rec.Key)
	}
	if err != nil {
		return err
	}
	defer s.end()
	m, ok, err := s.Latest()
	if err != nil {
		return err
	}
	if !ok || m.Deleting || m.UUID != rec.DiskUUID {
		return v.store.Free(rec.Key)
	}
	old := m
	m.Snapshots = slices.DeleteFunc(slices.Clone(m.Snapshots), func(p datastore.Snapshot) bool { return p.ID == id })
	if m.Retired {
		m = trimmed(m)
	}
	if m.State, err = v.step(m.State); err != nil {
		return fault.Wrap(err, "delete snapshot %s of disk %s", id, rec.Disk)
	}
	if err := s.Commit(m); err != nil {
		return lost(rec.Disk, err)
	}
	if err := v.store.Free(rec.Key); err != nil {
		return err
	}
	v.log.Info("snapshot deleted", "disk", rec.Disk, "snapshot", id)
	if m.Deleting {
		return v.remove(s.Volume)
	}
	v.dropGone(s.Volume, old, m)
	return nil
}

// step is the state of one commit to a disk: the next of this host's epoch if it holds the disk, else an epoch of its own
// that is released at once. Kinds: InUse (another host holds it).
func (v *Volumes) step(cur lease.State) (lease.State, error) {
	if lease.Holds(cur, cur.Epoch, v.me) == nil {
		return lease.Next(cur), nil
	}
	next, _, err := lease.Acquire(cur, v.me)
	next.Released = true
	return next, err
}

// trimmed is m as a retired disk: without the links above its last snapshot; "deleting" if it has none.
func trimmed(m datastore.Manifest) datastore.Manifest {
	last := -1
	for i, l := range m.Links {
		if m.SnapshotAt(l.Descriptor) {
			last = i
		}
	}
	if last < 0 {
		return deleting(m)
	}
	links := slices.Clone(m.Links[:last+1])
	next := withLinks(m, links)
	next.Links[last].Frozen = true
	next.Retired, next.Growing = true, 0
	if next.Merge != nil && next.Index(next.Merge.Lower) < 0 {
		next.Merge = nil // both links are gone: no snapshot ends at the lower one of a merge
	}
	if next.Index(next.Behind) < 0 {
		next.Behind = ""
	}
	return next
}

func deleting(m datastore.Manifest) datastore.Manifest {
	m.Deleting, m.Retired, m.Behind = true, false, ""
	m.Links, m.Steps, m.Snapshots, m.Merge, m.Growing = nil, nil, nil, nil, 0
	return m
}

// dropGone removes the files of links that were in old and are not in m, which is committed.
func (v *Volumes) dropGone(vol *datastore.Volume, old, m datastore.Manifest) {
	for _, l := range old.Links {
		if m.Index(l.Descriptor) >= 0 {
			continue
		}
		if err := vol.Drop(m, l); err != nil {
			v.log.Warn("files of a link that is not needed any more were not removed; whoever opens the disk next collects them",
				"disk", vol.ID(), "link", l.Descriptor, "error", err)
		}
	}
}
