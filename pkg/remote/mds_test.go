package remote_test

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/nbd"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// mds is the owner of a LUN: real chains on a real store, in this process. It is a remote.Datastore and a san.Source.
type mds struct {
	lun   fsx.File
	store *store.Store
	ds    *datastore.Datastore
	vols  *volume.Volumes
	maps  *san.Server

	mu   sync.Mutex
	open map[string]*opened
}

type opened struct {
	*chain.Chain
	node     string
	readOnly bool
	epoch    int64
	disk     host.Disk
	dir      fsx.Dir
	changing int // operations that need the map back
	revoked  context.Context
	revoke   context.CancelFunc
}

var _ remote.Datastore = (*mds)(nil)

// startMDS takes lun over.
func startMDS(lun fsx.File, c san.Config) (*mds, error) {
	m := &mds{lun: lun, open: map[string]*opened{}}
	var err error
	if m.store, err = store.Open(lun, store.Options{}); err != nil {
		return nil, err
	}
	if m.ds, err = datastore.Open(m.store.Root(), datastore.Options{}); err != nil {
		return nil, err
	}
	m.vols = volume.New(volume.Config{Store: m.ds, Name: "lun", Host: lease.Identity{Host: "lun", BootID: "1"}, Engine: volume.VMDK{}})
	c.Store, c.Source, c.LeaseOnly = m.store, source{m}, true
	m.maps = san.NewServer(ctx, c)
	return m, nil
}

// die leaves everything as a killed process does.
func (m *mds) die() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	for _, o := range m.open {
		o.revoke()
		err = errors.Join(err, o.Abandon(), o.dir.Close())
	}
	m.ds.Close()
	return errors.Join(err, m.lun.Close())
}

func (m *mds) dir(id string) (fsx.Dir, error) {
	all, err := m.store.Root().Sub("volumes")
	if err != nil {
		return nil, err
	}
	defer all.Close()
	return all.Sub(id)
}

// Open implements remote.Datastore.
func (m *mds) Open(ctx context.Context, id, node string, readOnly bool) (remote.Served, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.open[id]
	switch {
	case o == nil:
		v, err := m.vols.OpenForAttach(ctx, id, readOnly)
		if err != nil {
			return remote.Served{}, err
		}
		if err := v.Dir.Close(); err != nil {
			return remote.Served{}, err
		}
		o = &opened{node: node, readOnly: readOnly, epoch: v.Epoch}
		if o.dir, err = m.dir(id); err != nil {
			return remote.Served{}, err
		}
		opts := chain.Options{ReadOnly: readOnly, Format: vmdk.Thin}
		if !readOnly {
			opts.Pending = &chain.MemoryPending{}
		}
		if o.Chain, err = chain.Open(o.dir, v.Refs, opts); err != nil {
			return remote.Served{}, errors.Join(err, o.dir.Close())
		}
		if o.disk, err = m.vols.Get(ctx, id); err != nil {
			return remote.Served{}, err
		}
		o.revoked, o.revoke = context.WithCancel(context.Background())
		m.open[id] = o
	case o.node != node:
		return remote.Served{}, fault.New(fault.InUse, "", "disk %s is attached on node %s", id, o.node)
	case o.readOnly != readOnly:
		return remote.Served{}, fault.New(fault.Precondition, "", "disk %s is attached in the other mode", id)
	}
	return remote.Served{Disk: o.disk, Epoch: o.epoch, Export: nbd.Export{Device: o.Chain, MultiConn: true, Revoked: o.revoked}}, nil
}

// Close implements remote.Datastore.
func (m *mds) Close(ctx context.Context, id, node string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.open[id]
	if o == nil || o.node != node {
		return nil
	}
	delete(m.open, id)
	o.revoke()
	err := errors.Join(o.Chain.Close(), o.dir.Close())
	if o.readOnly {
		return err
	}
	return errors.Join(err, m.vols.Release(ctx, id, o.epoch, false))
}

func (m *mds) Maps() *san.Server { return m.maps }

func (m *mds) Space(context.Context) (total, free int64, err error) { return m.store.Root().Space() }

// change is an operation on a disk that must have no map out.
func (m *mds) change(ctx context.Context, id string, do func(server volume.Server) error) error {
	m.mu.Lock()
	o := m.open[id]
	if o != nil {
		o.changing++
	}
	m.mu.Unlock()
	if o == nil {
		return do(nil)
	}
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		o.changing--
	}()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := m.maps.Recall(ctx, id); err != nil {
		return err
	}
	return do(served{o.Chain})
}

type served struct{ *chain.Chain }

func (s served) Snapshot(ctx context.Context, child string, extentSize int64, commit func(parent, child *vmdk.Info) error) error {
	return s.Chain.Snapshot(ctx, chain.SnapshotParams{Child: child, ExtentSize: extentSize, Commit: commit})
}

func (s served) MergeCost(_ context.Context, lower int) (down, up int64, err error) {
	return s.Chain.MergeCost(lower)
}

func (m *mds) Create(ctx context.Context, spec host.DiskSpec) (host.Disk, error) {
	return m.vols.Create(ctx, spec)
}
func (m *mds) Delete(ctx context.Context, id string) error           { return m.vols.Delete(ctx, id) }
func (m *mds) Get(ctx context.Context, id string) (host.Disk, error) { return m.vols.Get(ctx, id) }
func (m *mds) List(ctx context.Context, n int, token string) ([]host.Disk, string, error) {
	list, _, err := m.vols.List(ctx, n, token)
	return list, "", err
}

func (m *mds) Expand(ctx context.Context, id string, size int64) (d host.Disk, err error) {
	err = m.change(ctx, id, func(s volume.Server) error {
		if s == nil {
			d, err = m.vols.Expand(ctx, id, size, nil)
		} else {
			d, err = m.vols.Expand(ctx, id, size, s)
		}
		return err
	})
	return d, err
}

func (m *mds) CreateSnapshot(ctx context.Context, spec host.SnapshotSpec) (s host.Snapshot, err error) {
	err = m.change(ctx, spec.Disk, func(server volume.Server) error {
		s, err = m.vols.Snapshot(ctx, spec, time.Time{}, server)
		return err
	})
	return s, err
}

func (m *mds) DeleteSnapshot(ctx context.Context, id string) error {
	return m.vols.DeleteSnapshot(ctx, id)
}

func (m *mds) GetSnapshot(ctx context.Context, id string) (host.Snapshot, error) {
	return m.vols.GetSnapshot(ctx, id)
}

func (m *mds) ListSnapshots(ctx context.Context, disk string, n int, token string) ([]host.Snapshot, string, error) {
	list, _, err := m.vols.ListSnapshots(ctx, disk, n, token)
	return list, "", err
}

// consolidate merges what no snapshot needs into the flat base.
func (m *mds) consolidate(ctx context.Context, id string) error {
	for {
		var r volume.ConsolidateResult
		err := m.change(ctx, id, func(server volume.Server) (err error) {
			r, err = m.vols.Consolidate(ctx, id, volume.ConsolidateOptions{Direction: chain.Down}, server)
			return err
		})
		if err != nil || !r.Merged {
			return err
		}
	}
}

// source is the mds as its server of maps sees it.
type source struct{ m *mds }

func (s source) Open(_ context.Context, r san.Request) (san.Subject, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	o := s.m.open[r.Volume]
	if o == nil {
		return nil, fault.New(fault.Unavailable, "", "disk %s is not open", r.Volume)
	}
	if o.changing > 0 {
		return nil, fault.New(fault.InProgress, "", "disk %s is being changed", r.Volume)
	}
	if err := o.Flush(); err != nil && !o.readOnly {
		return nil, err
	}
	return &subject{o}, nil
}

type subject struct{ o *opened }

func (s *subject) Dir() fsx.Dir { return s.o.dir }
func (s *subject) Size() int64  { return s.o.Chain.Size() }
func (s *subject) Close() error { return nil }
func (s *subject) Writable() error {
	if len(s.o.Links()) > 1 {
		return fault.New(fault.Precondition, "Use NBD until its snapshots are consolidated.", "the disk has snapshots")
	}
	return nil
}

func (s *subject) Runs() iter.Seq2[san.Run, error] {
	return func(yield func(san.Run, error) bool) {
		for x, err := range s.o.Map(0, s.o.Chain.Size()) {
			if !yield(san.Run{Off: x.Start, Len: x.Length, File: x.File, FileOff: x.Offset}, err) {
				return
			}
		}
	}
}

// lose is what an owner does whose right to the LUN ends: it cuts the clients off and closes the disk as it is.
func (m *mds) lose(id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.open[id]
	if o == nil {
		return nil
	}
	delete(m.open, id)
	o.revoke()
	return errors.Join(o.Abandon(), o.dir.Close())
}

func (m *mds) has(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.open[id] != nil
}
