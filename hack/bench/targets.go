package main

import (
	"context"
	"errors"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// Store is a datastore of its own in a place.
type store struct {
	*place
	data    *datastore.Datastore
	volumes *volume.Volumes
}

func (b *bench) store() (*store, error) {
	p, err := b.place()
	if err != nil {
		return nil, err
	}
	data, err := datastore.OpenPath(p.path, datastore.Options{})
	if err != nil {
		return nil, errors.Join(err, p.leave())
	}
	me := lease.Identity{Host: "bench", BootID: "bench"}
	return &store{p, data, volume.New(volume.Config{Store: data, Name: "bench", Host: me, Engine: volume.VMDK{}})}, nil
}

func (s *store) leave() error {
	s.data.Close()
	return s.place.leave()
}

// Thin makes a thin disk.
func (s *store) thin(ctx context.Context, name string, size int64, source *host.Source, mode host.CloneMode) (host.Disk, error) {
	return s.volumes.Create(ctx, host.DiskSpec{Name: name, Datastore: "bench", Size: size, Format: host.Thin, Type: host.MonolithicFlat,
		Source: source, CloneMode: mode})
}

// Attached is an open disk of a store.
type attached struct {
	*chain.Chain
	store *store
	id    string
	epoch int64
	dir   fsx.Dir
}

// Attach opens the disk as a worker does.
func (s *store) attach(ctx context.Context, id string) (*attached, error) {
	o, err := s.volumes.OpenForAttach(ctx, id, false)
	if err != nil {
		return nil, err
	}
	a := &attached{store: s, id: id, epoch: o.Epoch}
	if err = o.Dir.Close(); err == nil {
		a.dir, err = fsx.OpenRoot(s.file("volumes/" + id))
	}
	if err != nil {
		return nil, err
	}
	a.Chain, err = chain.Open(a.dir, o.Refs, chain.Options{Direct: true, Locks: true, Pending: &chain.MemoryPending{Max: 1 << 16}})
	if err != nil {
		return nil, errors.Join(err, a.dir.Close())
	}
	return a, nil
}

func (a *attached) detach(ctx context.Context) error {
	return errors.Join(a.Chain.Close(), a.dir.Close(), a.store.volumes.Release(ctx, a.id, a.epoch, false))
}

// Snapshot implements volume.Server.
func (a *attached) Snapshot(ctx context.Context, child string, extentSize int64, commit func(parent, child *vmdk.Info) error) error {
	return a.Chain.Snapshot(ctx, chain.SnapshotParams{Child: child, ExtentSize: extentSize, Commit: commit})
}

// MergeCost implements volume.Server.
func (a *attached) MergeCost(_ context.Context, lower int) (down, up int64, err error) {
	return a.Chain.MergeCost(lower)
}

// EngineTarget is a disk that this process has open.
type engineTarget struct{ *attached }

func newEngineTarget(ctx context.Context, b *bench, size int64) (target, error) {
	s, err := b.store()
	if err != nil {
		return nil, err
	}
	d, err := s.thin(ctx, "disk", size, nil, "")
	if err != nil {
		return nil, errors.Join(err, s.leave())
	}
	a, err := s.attach(ctx, d.ID)
	if err != nil {
		return nil, errors.Join(err, s.leave())
	}
	return engineTarget{a}, nil
}

func (t engineTarget) snapshot(ctx context.Context, name string) error {
	_, err := t.store.volumes.Snapshot(ctx, host.SnapshotSpec{Name: name, Disk: t.id}, time.Time{}, t.attached)
	return err
}

func (t engineTarget) close() error {
	return errors.Join(t.detach(context.Background()), t.store.leave())
}
