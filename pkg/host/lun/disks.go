package lun

import (
	"context"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// What the inner host does, with the nodes that have a disk in place of it.

// ready opens a disk that a node has and that could not be opened when the server began: until then nothing of it may change,
// because the node may write it by a block map.
func (s *Server) ready(ctx context.Context, id string) error {
	if len(s.sessions.get(id).Nodes) == 0 || s.serving(id) != nil {
		return nil
	}
	end, err := s.busy.TryLock(id, "open")
	if err != nil {
		return err
	}
	defer end()
	return s.lost(fault.Wrap(s.attach(ctx, id), "disk %s, which a node has", id))
}

// Create implements host.Disks.
func (s *Server) Create(ctx context.Context, spec host.DiskSpec) (host.Disk, error) {
	if spec.Source != nil && spec.Source.Disk != "" {
		if err := s.ready(ctx, spec.Source.Disk); err != nil {
			return host.Disk{}, err
		}
	}
	d, err := s.inner.Create(ctx, spec)
	s.attachments(&d)
	return d, s.lost(err)
}

// Delete implements host.Disks.
func (s *Server) Delete(ctx context.Context, id string) error {
	if x := s.sessions.get(id); len(x.Nodes) > 0 {
		return fault.New(fault.InUse, "Detach it there first.", "disk %s is attached on node %q", id, x.Nodes[0])
	}
	if err := s.inner.Delete(ctx, id); err != nil || s.sessions.get(id).empty() {
		return s.lost(err)
	}
	end, err := s.busy.TryLock(id, "delete")
	if err != nil {
		return err
	}
	defer end()
	if len(s.sessions.get(id).Nodes) > 0 { // somebody asks to open what is not there any more, and will hear it
		return nil
	}
	return s.lost(s.sessions.put(id, session{}))
}

// Get implements host.Disks.
func (s *Server) Get(ctx context.Context, id string) (host.Disk, error) {
	d, err := s.inner.Get(ctx, id)
	s.attachments(&d)
	return d, s.lost(err)
}

// List implements host.Disks.
func (s *Server) List(ctx context.Context, max int, token string) ([]host.Disk, string, error) {
	list, next, err := s.inner.List(ctx, max, token)
	for i := range list {
		s.attachments(&list[i])
	}
	return list, next, s.lost(err)
}

// Expand implements host.Disks.
func (s *Server) Expand(ctx context.Context, id string, size int64) (host.Disk, error) {
	if err := s.ready(ctx, id); err != nil {
		return host.Disk{}, err
	}
	d, err := s.inner.Expand(ctx, id, size)
	s.attachments(&d)
	return d, s.lost(err)
}

// CreateSnapshot implements host.Snapshots.
func (s *Server) CreateSnapshot(ctx context.Context, spec host.SnapshotSpec) (host.Snapshot, error) {
	if err := s.ready(ctx, spec.Disk); err != nil {
		return host.Snapshot{}, err
	}
	p, err := s.inner.CreateSnapshot(ctx, spec)
	return p, s.lost(err)
}

// DeleteSnapshot implements host.Snapshots.
func (s *Server) DeleteSnapshot(ctx context.Context, id string) error {
	return s.lost(s.inner.DeleteSnapshot(ctx, id))
}

// GetSnapshot implements host.Snapshots.
func (s *Server) GetSnapshot(ctx context.Context, id string) (host.Snapshot, error) {
	p, err := s.inner.GetSnapshot(ctx, id)
	return p, s.lost(err)
}

// ListSnapshots implements host.Snapshots.
func (s *Server) ListSnapshots(ctx context.Context, disk string, max int, token string) ([]host.Snapshot, string, error) {
	list, next, err := s.inner.ListSnapshots(ctx, disk, max, token)
	return list, next, s.lost(err)
}
