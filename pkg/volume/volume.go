package volume

import (
	"context"
	"log/slog"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/kmutex"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
)

// Engine makes and changes the files of a chain. Each method leaves no file open. Links are given base first.
type Engine interface {
	// Create makes a base link named after n.Descriptor, and makes its files and their names durable. What an error
	// leaves behind the caller collects.
	Create(ctx context.Context, d fsx.Dir, n NewLink) (datastore.Link, error)
	// Inspect tells what the links' descriptors say now.
	Inspect(ctx context.Context, d fsx.Dir, links []datastore.Link) ([]datastore.Link, error)
	// Grow makes the head larger, or finishes a growth that was interrupted, and closes the chain cleanly.
	Grow(ctx context.Context, d fsx.Dir, links []datastore.Link, size int64, format host.DiskFormat) error
	// Recover checks a chain that was not closed, repairs what its format allows, and closes it cleanly.
	Recover(ctx context.Context, d fsx.Dir, links []datastore.Link) error
}

// NewLink is a base link to be made.
type NewLink struct {
	Descriptor string
	UUID       string // 32 hex digits
	Size       int64  // bytes
	Format     host.DiskFormat
	Type       host.DiskType
}

// Volumes is the disks of one datastore, as one host works with them.
type Volumes struct {
	store  *datastore.Datastore
	name   string // of the datastore
	me     lease.Identity
	engine Engine
	log    *slog.Logger
	busy   kmutex.Set
}

// Config of New.
type Config struct {
	Store  *datastore.Datastore
	Name   string         // the datastore's name
	Host   lease.Identity // who works here
	Engine Engine
	Log    *slog.Logger // nil: silent
}

// New makes a Volumes; it does not own the datastore.
func New(c Config) *Volumes {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Volumes{store: c.Store, name: c.Name, me: c.Host, engine: c.Engine, log: c.Log.With("datastore", c.Name)}
}

// session is one operation on one volume: both locks, and the open directory.
type session struct {
	*datastore.Volume
	unlock func()
}

// begin locks the disk for op. Kinds: InProgress, NotFound.
func (v *Volumes) begin(ctx context.Context, id, op string) (*session, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.Wrap(err, "%s disk %s", op, id)
	}
	unlock, err := v.busy.TryLock(id, op)
	if err != nil {
		return nil, err
	}
	vol, err := v.store.OpenVolume(id)
	if err == nil {
		if err = vol.Lock(); err != nil {
			vol.Close()
		}
	}
	if err != nil {
		unlock()
		return nil, notThere(id, err)
	}
	return &session{Volume: vol, unlock: unlock}, nil
}

func (s *session) end() {
	s.Close()
	s.unlock()
}

// read is the disk's record and current manifest.
func (s *session) read() (datastore.Record, datastore.Manifest, error) {
	rec, err := s.Record()
	if err != nil {
		return rec, datastore.Manifest{}, err
	}
	m, err := current(s.Volume)
	return rec, m, err
}

// notThere gives every way of not being there one text.
func notThere(id string, err error) error {
	if fault.KindOf(err) == fault.NotFound {
		return fault.New(fault.NotFound, "", "disk %s does not exist", id)
	}
	return err
}

// current is the manifest of a complete disk that is not being deleted.
func current(vol *datastore.Volume) (datastore.Manifest, error) {
	m, ok, err := vol.Latest()
	if err == nil && (!ok || m.Deleting) {
		err = fault.New(fault.NotFound, "", "disk %s does not exist", vol.ID())
	}
	return m, err
}

// Get describes a disk. Kinds: NotFound (also while it is being made or deleted), Damaged.
func (v *Volumes) Get(_ context.Context, id string) (host.Disk, error) {
	vol, err := v.store.OpenVolume(id)
	if err != nil {
		return host.Disk{}, notThere(id, err)
	}
	defer vol.Close()
	rec, err := vol.Record()
	if err != nil {
		return host.Disk{}, notThere(id, err)
	}
	m, err := current(vol)
	if err != nil {
		return host.Disk{}, err
	}
	return v.describe(vol, rec, m), nil
}

// List describes up to max disks (0: all) in order of id, behind the id after. more says that there are others. A
// disk that cannot be read is listed as Failed with the reason: an administrator must see it.
func (v *Volumes) List(ctx context.Context, max int, after string) (disks []host.Disk, more bool, err error) {
	ids, err := v.store.IDs()
	if err != nil {
		return nil, false, err
	}
	for _, id := range ids {
		if id <= after || !host.ValidDiskID(id) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, false, fault.Wrap(err, "list disks")
		}
		d, err := v.Get(ctx, id)
		switch fault.KindOf(err) {
		case "":
		case fault.NotFound:
			continue
		default:
			d = host.Disk{ID: id, Phase: host.Failed, Reason: err.Error(), Spec: host.DiskSpec{Datastore: v.name}}
		}
		if max > 0 && len(disks) == max {
			return disks, true, nil
		}
		disks = append(disks, d)
	}
	return disks, false, nil
}

func (v *Volumes) describe(vol *datastore.Volume, rec datastore.Record, m datastore.Manifest) host.Disk {
	d := host.Disk{
		ID: rec.ID, Spec: v.spec(rec), Size: m.Size, UUID: rec.UUID, Phase: host.Ready,
	}
	for _, l := range m.Links {
		d.Links = append(d.Links, host.Link{
			Name: l.Descriptor, Type: l.Type, CID: l.CID, ParentCID: l.ParentCID, Size: l.Size,
			Allocated: allocated(vol.Dir(), l),
		})
	}
	return d
}

func (v *Volumes) spec(rec datastore.Record) host.DiskSpec {
	return host.DiskSpec{
		Name: rec.Name, Datastore: v.name, Size: rec.Size,
		Format: host.DiskFormat(rec.Format), Type: host.DiskType(rec.Type),
	}
}

// allocated is what a link's files use; a file that is missing counts nothing here and fails the next open.
func allocated(d fsx.Dir, l datastore.Link) (n int64) {
	for _, name := range append([]string{l.Descriptor}, l.Extents...) {
		if info, err := d.Stat(name); err == nil {
			n += info.Allocated
		}
	}
	return n
}

// nameKey is the key of the name record that a disk's id stands for.
func nameKey(id string) string { return strings.TrimPrefix(id, "vd-") }
