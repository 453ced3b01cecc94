package local

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// frozenTime is how long a snapshot of a file system that stands still waits for other datastores to say that they have
// nothing of its name.
const frozenTime = 20 * time.Millisecond

// CreateSnapshot implements host.Snapshots.
func (h *Host) CreateSnapshot(ctx context.Context, spec host.SnapshotSpec) (host.Snapshot, error) {
	var frozenUntil time.Time
	wait := othersTime
	if spec.Frozen > 0 {
		frozenUntil, wait = time.Now().Add(spec.Frozen), frozenTime
	}
	spec, err := spec.Normalize()
	if err != nil {
		return host.Snapshot{}, err
	}
	s, v, err := h.storeOf(ctx, spec.Disk)
	if err == nil {
		err = v.RoomForSnapshot(spec, h.get(spec.Disk) != nil)
	}
	if err != nil {
		return host.Snapshot{}, err
	}
	end, err := h.begin(ctx, spec.Disk, "snapshot")
	if err != nil {
		return host.Snapshot{}, err
	}
	defer end()
	server, err := h.server(v, spec.Disk)
	if err != nil {
		return host.Snapshot{}, err
	}
	id := host.SnapshotID(spec.Name)
	if err := h.snapshotElsewhere(id, spec.Disk, s, wait); err != nil {
		return host.Snapshot{}, err
	}
	p, err := v.Snapshot(ctx, spec, frozenUntil, server)
	if err != nil {
		return host.Snapshot{}, noted(s, err)
	}
	h.places.put(id, s)
	h.count.snapshots.Add(1)
	s.dressSnapshot(&p)
	return p, nil
}

// storeOf is where a disk is: that of an attached one is known without asking anybody.
func (h *Host) storeOf(ctx context.Context, id string) (*store, *volume.Volumes, error) {
	if a := h.get(id); a != nil {
		v, err := a.store.open()
		return a.store, v, err
	}
	return h.find(ctx, id)
}

// server is the worker that serves the disk for writing on this host, nil if none does. Who holds the disk's lock asks.
// Kinds: Precondition (it is being detached), Unavailable (its holder has not brought it back yet).
func (h *Host) server(v *volume.Volumes, id string) (volume.Server, error) {
	a := h.get(id)
	if a == nil {
		held, err := v.Held(id)
		if err == nil && held.Epoch != 0 && !held.Rebooted {
			return nil, fault.New(fault.Unavailable, "Try again.", "disk %s was attached on this host, whose hostd was restarted", id)
		}
		return nil, nil // what is wrong with it, its use case says
	}
	if a.att.ReadOnly {
		return nil, nil
	}
	if a.worker == nil {
		return nil, fault.New(fault.Precondition, "Try again when it is detached.", "disk %s is being detached", id)
	}
	return a.worker, nil
}

// snapshotElsewhere refuses the name of a snapshot that another datastore of this host has.
func (h *Host) snapshotElsewhere(id, disk string, s *store, wait time.Duration) (err error) {
	h.askAll(h.others(s), wait, snapshotDisk(id), func(a answer) bool {
		if a.has {
			err = fault.New(fault.Exists, "Use another name, or delete the snapshot first.",
				"snapshot %s is one of a disk in datastore %s, asked for is disk %s in %s", id, a.s.cfg.Name, disk, s.cfg.Name)
		}
		return a.has
	})
	return err
}

// DeleteSnapshot implements host.Snapshots.
func (h *Host) DeleteSnapshot(ctx context.Context, id string) error {
	if err := h.working(); err != nil {
		return err
	}
	s, v, disk, err := h.findSnapshot(ctx, id)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	end, err := h.begin(ctx, disk, "delete a snapshot")
	if err != nil {
		return err
	}
	defer end()
	if err := v.DeleteSnapshot(ctx, id); err != nil {
		return noted(s, err)
	}
	h.places.drop(id)
	h.count.snapshotsDeleted.Add(1)
	end()
	s.background.due(disk)
	s.background.due("") // a retired disk may be gone with it, and other disks share its links no more
	return nil
}

// GetSnapshot implements host.Snapshots.
func (h *Host) GetSnapshot(ctx context.Context, id string) (host.Snapshot, error) {
	s, v, _, err := h.findSnapshot(ctx, id)
	if err != nil {
		return host.Snapshot{}, err
	}
	p, err := v.GetSnapshot(ctx, id)
	if err != nil {
		return host.Snapshot{}, err
	}
	s.dressSnapshot(&p)
	return p, nil
}

// ListSnapshots implements host.Snapshots. The token is the id of the last snapshot returned.
func (h *Host) ListSnapshots(ctx context.Context, disk string, max int, token string) ([]host.Snapshot, string, error) {
	if err := host.CheckSnapshotList(max, token); err != nil {
		return nil, "", err
	}
	stores := h.stores
	if disk != "" {
		s, _, err := h.find(ctx, disk)
		switch {
		case errors.Is(err, fault.NotFound):
			return nil, "", nil
		case err != nil:
			return nil, "", err
		}
		stores = []*store{s}
	}
	var list []host.Snapshot
	more := false
	for _, s := range stores {
		v, err := s.open()
		if err != nil {
			continue // its snapshots are unknown; Datastores says why
		}
		some, rest, err := v.ListSnapshots(ctx, disk, max, token)
		if err != nil {
			return nil, "", err
		}
		more = more || rest
		for _, p := range some {
			s.dressSnapshot(&p)
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b host.Snapshot) int { return compare(a.ID, b.ID) })
	if max > 0 && len(list) > max {
		list, more = list[:max], true
	}
	next := ""
	if more && len(list) > 0 {
		next = list[len(list)-1].ID
	}
	return list, next, nil
}

// dressSnapshot adds what the datastore alone does not know.
func (s *store) dressSnapshot(p *host.Snapshot) {
	if s.cfg.Scope == host.ScopeNode {
		p.Hosts = []string{s.me.Host}
	}
}
