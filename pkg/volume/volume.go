package volume

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/kmutex"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Engine makes and changes the files of chains. Each method leaves no file open. Links are given base first.
type Engine interface {
	Maker
	Keeper
	Merger
}

// Maker makes new links, and makes their files and names durable. What an error leaves behind the caller collects.
type Maker interface {
	// Create makes a base link.
	Create(ctx context.Context, d fsx.Dir, n NewLink) (datastore.Link, error)
	// Child makes an empty child, of n.Size bytes, of the link whose descriptor is parent.
	Child(ctx context.Context, d fsx.Dir, parent string, n NewLink) (datastore.Link, error)
	// Share makes links in directory to over the extents of links in directory from: hard links of the extents, copies where
	// that is impossible, and descriptors of their own, which say what links says and n.UUID. File names get a prefix.
	Share(ctx context.Context, from fsx.Dir, links []datastore.Link, to fsx.Dir, n Shared) ([]datastore.Link, error)
	// Flatten makes a base link with the content of a chain whose head nobody writes.
	Flatten(ctx context.Context, d fsx.Dir, links []datastore.Link, n NewLink, progress func(done, total int64)) (datastore.Link, error)
}

// Keeper keeps closed chains right.
type Keeper interface {
	// Inspect tells what the links' descriptors say now.
	Inspect(ctx context.Context, d fsx.Dir, links []datastore.Link) ([]datastore.Link, error)
	// Grow makes the head larger, or finishes a growth that was interrupted, and closes the chain cleanly.
	Grow(ctx context.Context, d fsx.Dir, links []datastore.Link, size int64, format host.DiskFormat) error
	// Recover checks a chain that was not closed, repairs what its format allows, and closes it cleanly.
	Recover(ctx context.Context, d fsx.Dir, links []datastore.Link) error
	// Mend recovers parents that a crash left unclean; those that share extents with other disks it leaves alone.
	Mend(ctx context.Context, d fsx.Dir, links []datastore.Link) error
	// Rebind makes the descriptors say what links says about places in the chain; uuid is the disk's.
	Rebind(ctx context.Context, d fsx.Dir, links []datastore.Link, uuid string, head bool) error
}

// Merger makes one link of two neighbours.
type Merger interface {
	// Merge is chain.Chain.Merge on a chain that nobody else uses; a frozen head is not locked.
	Merge(ctx context.Context, d fsx.Dir, links []datastore.Link, p chain.MergeParams) error
	// MergeCost is how many bytes a merge would copy in each direction.
	MergeCost(ctx context.Context, d fsx.Dir, links []datastore.Link, lower int) (down, up int64, err error)
}

// NewLink is a link to be made.
type NewLink struct {
	Descriptor string
	UUID       string // of a base: 32 hex digits
	Size       int64  // bytes
	Format     host.DiskFormat
	Type       host.DiskType
}

// Shared is what Share makes.
type Shared struct {
	UUID   string // 32 hex digits
	Prefix string // replaces the "disk" that every file name begins with; "": the names stay
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

// living is current of a disk that was not deleted as a volume.
func living(id string, m datastore.Manifest, err error) error {
	if err == nil && m.Retired {
		return fault.New(fault.NotFound, "", "disk %s does not exist: it was deleted, and its links stay for its snapshots", id)
	}
	return err
}

// Get describes a disk; one that was deleted and has snapshots is Retired. Kinds: NotFound (also while it is being made or
// deleted), Damaged.
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

// IDs are the ids of everything that has a directory here, complete or not.
func (v *Volumes) IDs() ([]string, error) { return v.store.IDs() }

// List describes up to max disks (0: all) in order of id, behind the id after. more says that there are others. Retired
// disks are no volumes, and left out. A disk that cannot be read is listed as Failed with the reason: an administrator must see it.
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
			if d.Phase == host.Retired {
				continue
			}
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
		VMwareProblem: vmwareProblem(m), Consolidation: consolidation(vol.Dir(), m),
	}
	if m.Retired {
		d.Phase = host.Retired
	}
	for _, s := range m.Snapshots {
		d.Snapshots = append(d.Snapshots, s.ID)
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
	spec := host.DiskSpec{
		Name: rec.Name, Datastore: v.name, Size: rec.Size,
		Format: host.DiskFormat(rec.Format), Type: host.DiskType(rec.Type), CloneMode: host.CloneMode(rec.CloneMode),
	}
	if rec.Source != nil {
		spec.Source = &host.Source{Snapshot: rec.Source.Snapshot, Disk: rec.Source.Disk}
	}
	return spec
}

// vmwareProblem is why VMware would refuse the chain: it wants one capacity in all links.
func vmwareProblem(m datastore.Manifest) string {
	if len(m.Steps) == 0 {
		return ""
	}
	s := m.Steps[0]
	return fmt.Sprintf("link %s has %d MiB, its parent %d MiB: VMware wants one capacity in all links; consolidation or flattening cures it",
		m.Links[s.Link].Descriptor, s.To>>20, s.From>>20)
}

// allocated is what a link's files use; a file that is missing counts nothing here and fails the next open.
func allocated(d fsx.Dir, l datastore.Link) (n int64) {
	for _, name := range l.Files() {
		if info, err := d.Stat(name); err == nil {
			n += info.Allocated
		}
	}
	return n
}

// nameKey is the key of the name record that a disk's id stands for.
func nameKey(id string) string { return strings.TrimPrefix(id, "vd-") }
