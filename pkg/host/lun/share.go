package lun

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
)

// Lender is the host whose directories are shared: it opens disks for other hosts (host/local).
type Lender interface {
	host.Host
	// Lendable says whether a disk may be lent that was not yet.
	Lendable(ctx context.Context, id string) error
	// Lend opens a disk in this process, and serves it with Server.Serve; repeated it finds it open.
	Lend(ctx context.Context, id string, readOnly bool) (host.Attachment, error)
	// TakeBack closes and releases it.
	TakeBack(ctx context.Context, id string) error
}

// ShareConfig of NewShare.
type ShareConfig struct {
	Datastore string // a directory of Base
	StateDir  string // keeps which node has which disk
	Base      Lender
	Log       *slog.Logger
}

// Share serves the disks in a directory to nodes that do not reach them, by NBD alone.
type Share struct{ *Server }

var _ remote.Spread = (*Share)(nil)

// NewShare reads who has what; Reopen opens it.
func NewShare(c ShareConfig) (*Share, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	path := filepath.Join(c.StateDir, "lent-"+c.Datastore)
	if err := os.MkdirAll(path, 0o750); err != nil {
		return nil, fault.Wrap(err, "make the directory of who has which disk")
	}
	root, err := fsx.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	s := &Server{c: ServerConfig{Datastore: c.Datastore, RecallTime: recallTime}, log: c.Log.With("datastore", c.Datastore), open: map[string]*Serving{},
		inner: directory{Host: c.Base, base: c.Base, name: c.Datastore}}
	if s.sessions, err = loadSessions(root); err != nil {
		return nil, err
	}
	s.life, s.end = context.WithCancel(context.Background())
	return &Share{s}, nil
}

// Reopen opens the disks that nodes have since an earlier process. Their users wait meanwhile; one that cannot be opened now is tried
// again when its node asks.
func (s *Share) Reopen(ctx context.Context) {
	for _, id := range s.sessions.ids() {
		end, err := s.busy.TryLock(id, "open")
		if err != nil {
			continue // its node asks
		}
		err = s.attach(ctx, id)
		end()
		if err != nil {
			s.log.Warn("a disk that a node has was not opened; it is tried again when the node asks", "disk", id, "error", err)
		}
	}
}

// Holds implements remote.Spread.
func (s *Share) Holds(ctx context.Context, id, node string) (bool, error) {
	if id == "" {
		_, _, err := s.Space(ctx)
		return false, err
	}
	disk := id
	if host.ValidSnapshotID(id) {
		p, err := s.inner.GetSnapshot(ctx, id)
		if err != nil {
			return false, err
		}
		disk = p.Disk
	}
	if s.has(disk, node) {
		return true, nil
	}
	_, err := s.inner.Get(ctx, disk)
	return false, err
}

// Space implements remote.Datastore.
func (s *Share) Space(ctx context.Context) (total, free int64, err error) {
	list, err := s.inner.Datastores(ctx)
	for _, d := range list {
		if d.Name != s.c.Datastore || len(d.Hosts) == 0 {
			continue
		}
		on := d.Hosts[0]
		if !on.Ready {
			return 0, 0, fault.New(fault.Unavailable, "", "%s", on.Reason)
		}
		return on.Total, on.Free, nil
	}
	return 0, 0, errors.Join(err, fault.New(fault.NotFound, "", "there is no datastore %s", s.c.Datastore))
}

// holders are the nodes that have a disk.
func (s *Share) holders(id string) []string { return s.sessions.get(id).Nodes }

// directory is a Lender's datastore as the inner host of a Server: to attach is to lend. Consolidation and the end are the Lender's own.
// Other hosts make copies of what they have, and nothing else.
type directory struct {
	host.Host
	base Lender
	name string
}

var _ Inner = directory{}

func (d directory) Consolidate(context.Context) {}
func (d directory) Close()                      {}

func (d directory) Attach(ctx context.Context, req host.AttachRequest, _ host.Device) (host.Attachment, error) {
	return d.base.Lend(host.WithDatastore(ctx, d.name), req.ID, req.ReadOnly)
}

func (d directory) Detach(ctx context.Context, id string) error {
	return d.base.TakeBack(host.WithDatastore(ctx, d.name), id)
}

func (d directory) Get(ctx context.Context, id string) (host.Disk, error) {
	return d.base.Get(host.WithDatastore(ctx, d.name), id)
}

func (d directory) Expand(ctx context.Context, id string, size int64) (host.Disk, error) {
	return d.base.Expand(host.WithDatastore(ctx, d.name), id, size)
}

func (d directory) CreateSnapshot(ctx context.Context, spec host.SnapshotSpec) (host.Snapshot, error) {
	return d.base.CreateSnapshot(host.WithDatastore(ctx, d.name), spec)
}

func (d directory) DeleteSnapshot(ctx context.Context, id string) error {
	return d.base.DeleteSnapshot(host.WithDatastore(ctx, d.name), id)
}

func (d directory) GetSnapshot(ctx context.Context, id string) (host.Snapshot, error) {
	return d.base.GetSnapshot(host.WithDatastore(ctx, d.name), id)
}

func (d directory) ListSnapshots(ctx context.Context, disk string, max int, token string) ([]host.Snapshot, string, error) {
	if disk == "" {
		return nil, "", d.refuse()
	}
	return d.base.ListSnapshots(host.WithDatastore(ctx, d.name), disk, max, token)
}

func (d directory) List(context.Context, int, string) ([]host.Disk, string, error) {
	return nil, "", d.refuse()
}

func (d directory) Create(ctx context.Context, spec host.DiskSpec) (host.Disk, error) {
	if spec.Source == nil || spec.Datastore != d.name {
		return host.Disk{}, d.refuse()
	}
	return d.base.Create(ctx, spec)
}

func (d directory) Delete(context.Context, string) error { return d.refuse() }

func (d directory) refuse() error {
	return fault.New(fault.Unsupported, "Ask a host that reaches the datastore.", "datastore %s is a directory: other hosts use disks in it, no more", d.name)
}
