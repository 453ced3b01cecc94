package lun

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// othersTime is how long a request that makes something waits for the other datastores to say that they have nothing of that name.
const othersTime = time.Second

// frozenTime is that while a file system stands still.
const frozenTime = 50 * time.Millisecond

// Create implements host.Disks.
func (h *Host) Create(ctx context.Context, spec host.DiskSpec) (host.Disk, error) {
	spec, err := spec.Normalize()
	if err != nil {
		return host.Disk{}, err
	}
	s := h.store(spec.Datastore)
	if s != nil && spec.Host != "" && spec.Host != h.c.Node {
		return host.Disk{}, fault.New(fault.NotFound, "Ask that host.", "host %q is not this one, %q", spec.Host, h.c.Node)
	}
	id := host.DiskID(spec.Name)
	end, err := h.begin(id, "create")
	if err != nil {
		return host.Disk{}, err
	}
	defer end()
	if err := ctx.Err(); err != nil {
		return host.Disk{}, fault.Wrap(err, "create disk %s", id)
	}
	if name, ok := h.elsewhere(ctx, othersTime, s, h.baseDisk(id), isDisk(id)); ok {
		return host.Disk{}, fault.New(fault.Exists, "Use another name, or delete the disk first.",
			"disk %s exists with datastore %s, asked for is %s", id, name, spec.Datastore)
	}
	if spec.Source != nil {
		if err := h.sourceElsewhere(ctx, s, spec); err != nil {
			return host.Disk{}, err
		}
	}
	if s == nil {
		s = h.sourceLender(ctx, spec)
	}
	if s == nil {
		return h.dressed(h.c.Base.Create(ctx, spec))
	}
	spec.Host = "" // every host serves it alike
	d, err := s.Client.Create(ctx, spec)
	if err != nil {
		return d, err
	}
	h.seen(id, s)
	return h.complete(d)
}

// baseDisk tells on which datastore of the base a disk is.
func (h *Host) baseDisk(id string) func(ctx context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		d, err := h.c.Base.Get(ctx, id)
		return d.Spec.Datastore, err
	}
}

func (h *Host) baseSnapshot(id string) func(ctx context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		p, err := h.c.Base.GetSnapshot(ctx, id)
		return p.Datastore, err
	}
}

// sourceElsewhere refuses a source that is on another datastore. Kind: Invalid.
func (h *Host) sourceElsewhere(ctx context.Context, s *datastore, spec host.DiskSpec) error {
	base, q := h.baseDisk(spec.Source.Disk), isDisk(spec.Source.Disk)
	if spec.Source.Snapshot != "" {
		base, q = h.baseSnapshot(spec.Source.Snapshot), isSnapshot(spec.Source.Snapshot)
	}
	if name, ok := h.elsewhere(ctx, othersTime, s, base, q); ok {
		return spec.CheckSource(name, 0)
	}
	return nil
}

// complete adds claims and what this node has attached.
func (h *Host) complete(d host.Disk) (host.Disk, error) {
	var err error
	if d.Claims, err = h.claims.of(d.ID); err != nil {
		return host.Disk{}, err
	}
	d.Attachments = slices.DeleteFunc(d.Attachments, func(a host.Attachment) bool { return a.Host == h.c.Node })
	if a := h.get(d.ID); a != nil {
		d.Attachments = append(d.Attachments, a.view())
	}
	return d, nil
}

// Delete implements host.Disks.
func (h *Host) Delete(ctx context.Context, id string) error {
	s, err := h.diskOn(ctx, id)
	if err != nil {
		return err
	}
	if s == nil {
		if err := h.notLent(id); err != nil {
			return err
		}
		if err := h.c.Base.Delete(ctx, id); err != nil || !host.ValidDiskID(id) {
			return err
		}
		for _, s := range h.stores { // remainders of earlier deletions are swept
			if err := s.Client.Delete(ctx, id); err != nil {
				return err
			}
		}
		return nil
	}
	end, err := h.begin(id, "delete")
	if err != nil {
		return err
	}
	defer end()
	if h.get(id) != nil {
		return fault.New(fault.InUse, "Detach it first.", "disk %s is attached on host %q", id, h.c.Node)
	}
	claimed, err := h.claims.of(id)
	if err != nil {
		return err
	}
	if len(claimed) > 0 {
		return fault.New(fault.InUse, "Detach it there first.", "disk %s is claimed by node %q", id, claimed[0].Node)
	}
	if err := s.Client.Delete(ctx, id); err != nil {
		return err
	}
	h.seen(id, nil)
	return nil
}

// Get implements host.Disks.
func (h *Host) Get(ctx context.Context, id string) (host.Disk, error) {
	s, err := h.diskOn(ctx, id)
	if err != nil {
		return host.Disk{}, err
	}
	if s == nil {
		return h.dressed(h.c.Base.Get(ctx, id))
	}
	d, err := s.Client.Get(ctx, id)
	if err != nil {
		return d, h.forget(id, err)
	}
	return h.complete(d)
}

// List implements host.Disks. The token is the id of the last disk returned. What is on a LUN that does not answer is unknown;
// Datastores says why.
func (h *Host) List(ctx context.Context, max int, token string) ([]host.Disk, string, error) {
	disks, next, err := h.c.Base.List(ctx, max, token)
	if err != nil {
		return nil, "", err
	}
	for i := range disks {
		h.dress(&disks[i])
	}
	more := next != ""
	for _, s := range h.stores {
		some, next, err := s.Client.List(ctx, max, token)
		if err != nil {
			h.log.Warn("disks are not listed", "datastore", s.Name, "error", err)
			continue
		}
		more = more || next != ""
		for _, d := range some {
			if d, err = h.complete(d); err != nil {
				return nil, "", err
			}
			disks = append(disks, d)
		}
	}
	slices.SortFunc(disks, func(a, b host.Disk) int { return strings.Compare(a.ID, b.ID) })
	disks, next = page(disks, max, more, func(d host.Disk) string { return d.ID })
	return disks, next, nil
}

// page cuts a list to its first max entries, and gives the token for the rest.
func page[T any](list []T, max int, more bool, id func(T) string) ([]T, string) {
	if max > 0 && len(list) > max {
		list, more = list[:max], true
	}
	if !more || len(list) == 0 {
		return list, ""
	}
	return list, id(list[len(list)-1])
}

// Expand implements host.Disks.
func (h *Host) Expand(ctx context.Context, id string, size int64) (host.Disk, error) {
	if err := host.CheckSize(size); err != nil {
		return host.Disk{}, err
	}
	s, err := h.diskOn(ctx, id)
	if err != nil {
		return host.Disk{}, err
	}
	if s == nil {
		return h.dressed(h.c.Base.Expand(ctx, id, size))
	}
	end, err := h.begin(id, "expand")
	if err != nil {
		return host.Disk{}, err
	}
	defer end()
	d, err := s.Client.Expand(ctx, id, size)
	if err != nil {
		return d, h.forget(id, err)
	}
	return h.complete(d)
}

// CreateSnapshot implements host.Snapshots.
func (h *Host) CreateSnapshot(ctx context.Context, spec host.SnapshotSpec) (host.Snapshot, error) {
	wait, begun := othersTime, time.Now()
	if spec.Frozen > 0 {
		wait = frozenTime
	}
	spec, err := spec.Normalize()
	if err != nil {
		return host.Snapshot{}, err
	}
	s, err := h.diskOn(ctx, spec.Disk)
	if err != nil {
		return host.Snapshot{}, err
	}
	id := host.SnapshotID(spec.Name)
	if s == nil || !s.directory { // the host of a directory looks itself
		if name, ok := h.elsewhere(ctx, wait, s, h.baseSnapshot(id), isSnapshot(id)); ok && (s != nil || h.hasDisk(ctx, spec.Disk)) {
			return host.Snapshot{}, fault.New(fault.Exists, "Use another name, or delete the snapshot first.",
				"snapshot %s is one of a disk in datastore %s, asked for is disk %s", id, name, spec.Disk)
		}
	}
	spec.Frozen = max(0, spec.Frozen-time.Since(begun))
	if s == nil {
		return h.c.Base.CreateSnapshot(ctx, spec)
	}
	end, err := h.begin(spec.Disk, "snapshot")
	if err != nil {
		return host.Snapshot{}, err
	}
	defer end()
	p, err := s.Client.CreateSnapshot(ctx, spec)
	if err == nil {
		h.seen(id, s)
	}
	return p, h.forget(spec.Disk, err)
}

// hasDisk says that the base has a disk.
func (h *Host) hasDisk(ctx context.Context, id string) bool {
	_, err := h.c.Base.Get(ctx, id)
	return err == nil
}

// DeleteSnapshot implements host.Snapshots.
func (h *Host) DeleteSnapshot(ctx context.Context, id string) error {
	if err := h.working(); err != nil {
		return err
	}
	s, err := h.snapshotOn(ctx, id)
	if err != nil {
		return err
	}
	if s == nil {
		return h.c.Base.DeleteSnapshot(ctx, id)
	}
	if err := s.Client.DeleteSnapshot(ctx, id); err != nil {
		return err
	}
	h.seen(id, nil)
	return nil
}

// GetSnapshot implements host.Snapshots.
func (h *Host) GetSnapshot(ctx context.Context, id string) (host.Snapshot, error) {
	s, err := h.snapshotOn(ctx, id)
	if err != nil {
		return host.Snapshot{}, err
	}
	if s == nil {
		return h.c.Base.GetSnapshot(ctx, id)
	}
	p, err := s.Client.GetSnapshot(ctx, id)
	return p, h.forget(id, err)
}

// ListSnapshots implements host.Snapshots. The token is the id of the last snapshot returned.
func (h *Host) ListSnapshots(ctx context.Context, disk string, max int, token string) ([]host.Snapshot, string, error) {
	if err := host.CheckSnapshotList(max, token); err != nil {
		return nil, "", err
	}
	if disk != "" {
		s, err := h.diskOn(ctx, disk)
		switch {
		case err != nil:
			return nil, "", err
		case s != nil:
			return s.Client.ListSnapshots(ctx, disk, max, token)
		}
		return h.c.Base.ListSnapshots(ctx, disk, max, token)
	}
	list, next, err := h.c.Base.ListSnapshots(ctx, "", max, token)
	if err != nil {
		return nil, "", err
	}
	more := next != ""
	for _, s := range h.stores {
		some, next, err := s.Client.ListSnapshots(ctx, "", max, token)
		if err != nil {
			h.log.Warn("snapshots are not listed", "datastore", s.Name, "error", err)
			continue
		}
		more = more || next != ""
		list = append(list, some...)
	}
	slices.SortFunc(list, func(a, b host.Snapshot) int { return strings.Compare(a.ID, b.ID) })
	list, next = page(list, max, more, func(p host.Snapshot) string { return p.ID })
	return list, next, nil
}
