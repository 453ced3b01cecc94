package volume

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// Snapshot makes the snapshot, or returns it when the disk has it. server is the worker that serves the disk on this host,
// nil when it is not attached here; frozenUntil is until when the file system of an attached disk surely stands still (zero:
// it does not). Steps:
//
//  1. reserve the name: publish its record          crash: the name is taken; a retry continues, a delete frees it
//  2. detached: commit, under the next epoch and released, the snapshot at the head, which is frozen
//     attached: the worker makes a child and stops the requests; commit the child as the head and the snapshot at
//     its parent                                    crash before: unreferenced files, collected by the next attach
//
// 2 is the commit point. Before it, a disk that was not released, or at which something was interrupted, is held and tidied.
// A definite failure gives the name back if this call reserved it.
//
// Kinds: Invalid, NotFound (the disk: missing, being made, deleted or retired), Exists (a snapshot of this name of another
// disk), InProgress, Exhausted (the chain is at its depth limit), NoSpace, InUse (attached on another host), Precondition.
func (v *Volumes) Snapshot(ctx context.Context, spec host.SnapshotSpec, frozenUntil time.Time, server Server) (host.Snapshot, error) {
	spec, err := spec.Normalize()
	if err != nil {
		return host.Snapshot{}, err
	}
	s, err := v.begin(ctx, spec.Disk, "snapshot")
	if err != nil {
		return host.Snapshot{}, err
	}
	defer s.end()
	rec, m, err := s.read()
	if err != nil {
		return host.Snapshot{}, err
	}
	id := host.SnapshotID(spec.Name)
	if p := find(m, id); p != nil {
		return v.describeSnapshot(m, *p), nil
	}
	if err := living(spec.Disk, m, nil); err != nil {
		return host.Snapshot{}, err
	}
	if err := v.maySnapshot(m, server != nil); err != nil {
		return host.Snapshot{}, err
	}
	made, err := v.reserveSnapshot(spec, m)
	if err != nil {
		return host.Snapshot{}, err
	}
	p := datastore.Snapshot{ID: id, Name: spec.Name}
	if server != nil {
		m, err = v.snapshotServed(ctx, s, m, &p, frozenUntil, server)
	} else {
		m, err = v.snapshotFree(ctx, s, rec, m, &p)
	}
	if err != nil {
		if now, lerr := current(s.Volume); lerr == nil && find(now, id) != nil {
			// Another host has built on this commit before it was looked at, which looks like one that came too late.
			return v.describeSnapshot(now, *find(now, id)), nil
		}
		return host.Snapshot{}, v.undoSnapshot(id, made, fault.Wrap(err, "snapshot of disk %s", spec.Disk))
	}
	v.log.Info("snapshot taken", "disk", spec.Disk, "snapshot", id, "links", len(m.Links), "consistency", p.Consistency)
	return v.describeSnapshot(m, *find(m, id)), nil
}

// RoomForSnapshot says whether Snapshot would refuse for want of room in the chain, without a lock: so that a merge that would
// make room need not give way to a request that fails. Kinds: Exhausted, NotFound, Damaged.
func (v *Volumes) RoomForSnapshot(spec host.SnapshotSpec, served bool) error {
	m, err := v.manifest(spec.Disk)
	if err != nil || find(m, host.SnapshotID(spec.Name)) != nil {
		return err
	}
	return v.maySnapshot(m, served)
}

// maySnapshot looks at the limits.
func (v *Volumes) maySnapshot(m datastore.Manifest, served bool) error {
	if len(m.Snapshots) >= datastore.MaxSnapshots {
		return fault.New(fault.Exhausted, "Delete snapshots.", "disk %s has %d snapshots", m.Disk, len(m.Snapshots))
	}
	if !served && m.Head().Frozen {
		return nil // nothing was written since: both end at the same link
	}
	return tooDeep("a snapshot of disk "+m.Disk, depth(m)+1)
}

// reserveSnapshot is step 1.
func (v *Volumes) reserveSnapshot(spec host.SnapshotSpec, m datastore.Manifest) (made bool, err error) {
	id := host.SnapshotID(spec.Name)
	rec := datastore.SnapshotRecord{ID: id, Key: snapshotKey(id), Name: spec.Name, Disk: spec.Disk, DiskUUID: m.UUID}
	owner, made, err := v.store.ReserveSnapshot(rec)
	if err != nil {
		return made, err
	}
	if owner.Disk == spec.Disk && owner.DiskUUID != m.UUID {
		// It is left from a disk of the same name that was deleted: such a snapshot cannot exist any more.
		if err := v.store.Free(rec.Key); err != nil {
			return false, err
		}
		owner, made, err = v.store.ReserveSnapshot(rec)
	}
	if err == nil && owner.Disk != spec.Disk {
		err = fault.New(fault.Exists, "Use another name, or delete the snapshot first.",
			"snapshot %s is one of disk %s, asked for is disk %s", id, owner.Disk, spec.Disk)
	}
	return made, err
}

// undoSnapshot gives the name back that this call reserved, if the snapshot surely was not made.
func (v *Volumes) undoSnapshot(id string, reserved bool, err error) error {
	if !reserved || errors.Is(err, fault.Poisoned) {
		return err
	}
	if uerr := v.store.Free(snapshotKey(id)); uerr != nil {
		v.log.Warn("the name of a failed snapshot was not freed; a retry continues, a delete frees it", "snapshot", id, "error", uerr)
	}
	return err
}

// snapshotFree is step 2 of a disk that nobody serves.
func (v *Volumes) snapshotFree(ctx context.Context, s *session, rec datastore.Record, m datastore.Manifest, p *datastore.Snapshot) (datastore.Manifest, error) {
	var before lease.Before
	var err error
	if free(m) {
		m.State, before, err = lease.Acquire(m.State, v.me)
	} else {
		if m, before, err = v.hold(ctx, s, rec, m); err == nil {
			m.State = lease.Next(m.State)
		}
	}
	if err != nil {
		return m, err
	}
	p.Consistency = string(host.FilesystemConsistent)
	if before != lease.Clean {
		p.Consistency = string(host.CrashConsistent)
	}
	m.Released = true
	m = withSnapshot(m, m.Head(), p)
	m.Links = slices.Clone(m.Links)
	m.Links[len(m.Links)-1].Frozen = true
	return m, lost(s.ID(), s.Commit(m))
}

// withSnapshot is m with the snapshot p at the link.
func withSnapshot(m datastore.Manifest, l datastore.Link, p *datastore.Snapshot) datastore.Manifest {
	p.Link, p.Size, p.CID, p.Created = l.Descriptor, l.Size, l.CID, time.Now().UTC()
	m.Snapshots = append(slices.Clone(m.Snapshots), *p)
	return m
}

// snapshotServed is step 2 of a disk that server serves.
func (v *Volumes) snapshotServed(ctx context.Context, s *session, m datastore.Manifest, p *datastore.Snapshot, frozenUntil time.Time, server Server) (datastore.Manifest, error) {
	m, _, err := v.newHead(ctx, s, m, server, func(next datastore.Manifest, parent datastore.Link) datastore.Manifest {
		p.Consistency = string(host.CrashConsistent)
		if time.Now().Before(frozenUntil) {
			p.Consistency = string(host.FilesystemConsistent)
		}
		return withSnapshot(next, parent, p)
	})
	return m, err // what went wrong after the commit is seen in the disk
}

// newHead has server put a child on top of the disk, and commits it with what change adds. after is what went wrong when it
// was committed.
func (v *Volumes) newHead(ctx context.Context, s *session, m datastore.Manifest, server Server, change func(datastore.Manifest, datastore.Link) datastore.Manifest) (_ datastore.Manifest, after, err error) {
	if err := v.serving(s.ID(), m); err != nil {
		return m, nil, err
	}
	name, err := childName(s.Volume, m)
	if err != nil {
		return m, nil, err
	}
	committed := false
	err = server.Snapshot(ctx, name, 0, func(parent, child *vmdk.Info) error {
		next := change(withHead(m, linkOf(parent), linkOf(child)), linkOf(parent))
		next.State = lease.Next(m.State)
		err := lost(s.ID(), s.Commit(next))
		if err == nil {
			m, committed = next, true
		}
		return err
	})
	if committed {
		return m, err, nil
	}
	if err == nil {
		err = fault.New(fault.Internal, "", "the worker of disk %s answered without a commit", s.ID())
	}
	return m, nil, err
}

// find is the snapshot of that id, nil if m has none.
func find(m datastore.Manifest, id string) *datastore.Snapshot {
	if i := slices.IndexFunc(m.Snapshots, func(s datastore.Snapshot) bool { return s.ID == id }); i >= 0 {
		return &m.Snapshots[i]
	}
	return nil
}

func (v *Volumes) describeSnapshot(m datastore.Manifest, s datastore.Snapshot) host.Snapshot {
	return host.Snapshot{
		ID: s.ID, Name: s.Name, Disk: m.Disk, DiskUUID: m.UUID, Datastore: v.name, Size: s.Size, CID: s.CID,
		Created: s.Created, Consistency: host.Consistency(s.Consistency), Ready: true,
	}
}

// snapshotKey is the key of the name record that a snapshot's id stands for.
func snapshotKey(id string) string { return strings.TrimPrefix(id, "vs-") }

// noSnapshot gives every way of not being there one text.
func noSnapshot(id string) error {
	return fault.New(fault.NotFound, "", "snapshot %s does not exist", id)
}

// SnapshotDisk is the id of the disk that a snapshot is of, or was asked for: the manifest of the disk says whether it was
// made. Kinds: NotFound, Damaged.
func (v *Volumes) SnapshotDisk(id string) (string, error) {
	rec, err := v.snapshotRecord(id)
	return rec.Disk, err
}

func (v *Volumes) snapshotRecord(id string) (datastore.SnapshotRecord, error) {
	if !host.ValidSnapshotID(id) {
		return datastore.SnapshotRecord{}, noSnapshot(id)
	}
	rec, err := v.store.ReservedSnapshot(snapshotKey(id))
	if errors.Is(err, fs.ErrNotExist) {
		err = noSnapshot(id)
	}
	return rec, err
}

// GetSnapshot describes a snapshot. Kinds: NotFound (also one that is being made), Damaged.
func (v *Volumes) GetSnapshot(_ context.Context, id string) (host.Snapshot, error) {
	m, p, err := v.snapshot(id)
	if err != nil {
		return host.Snapshot{}, err
	}
	return v.describeSnapshot(m, p), nil
}

// snapshot is a snapshot, with the manifest of its disk.
func (v *Volumes) snapshot(id string) (datastore.Manifest, datastore.Snapshot, error) {
	rec, err := v.snapshotRecord(id)
	if err != nil {
		return datastore.Manifest{}, datastore.Snapshot{}, err
	}
	m, err := v.manifest(rec.Disk)
	if errors.Is(err, fault.NotFound) {
		err = noSnapshot(id)
	}
	if err != nil {
		return m, datastore.Snapshot{}, err
	}
	p := find(m, id)
	if p == nil || m.UUID != rec.DiskUUID {
		return m, datastore.Snapshot{}, noSnapshot(id)
	}
	return m, *p, nil
}

// manifest is the current one of a disk.
func (v *Volumes) manifest(id string) (datastore.Manifest, error) {
	vol, err := v.store.OpenVolume(id)
	if err != nil {
		return datastore.Manifest{}, notThere(id, err)
	}
	defer vol.Close()
	return current(vol)
}

// ListSnapshots describes up to max snapshots (0: all) in order of id, behind the id after, of one disk if disk is not "".
// more says that there are others. Those of a disk that cannot be read are left out; List shows that disk.
func (v *Volumes) ListSnapshots(ctx context.Context, disk string, max int, after string) (list []host.Snapshot, more bool, err error) {
	ids := []string{disk}
	if disk == "" {
		if ids, err = v.store.IDs(); err != nil {
			return nil, false, err
		}
	}
	for _, id := range ids {
		if !host.ValidDiskID(id) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, false, fault.Wrap(err, "list snapshots")
		}
		m, err := v.manifest(id)
		if err != nil && disk != "" && !errors.Is(err, fault.NotFound) {
			return nil, false, err
		}
		for _, p := range m.Snapshots {
			if p.ID > after {
				list = append(list, v.describeSnapshot(m, p))
			}
		}
	}
	slices.SortFunc(list, func(a, b host.Snapshot) int { return strings.Compare(a.ID, b.ID) })
	if max > 0 && len(list) > max {
		return list[:max], true, nil
	}
	return list, false, nil
}
