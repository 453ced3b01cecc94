package volume

import (
	"context"
	"errors"
	"os"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
)

// Opened is a disk that this host may serve.
type Opened struct {
	ID, UUID string
	Size     int64 // bytes
	ReadOnly bool
	Epoch    int64        // 0 when read-only
	Before   lease.Before // what the previous owner left
	Format   host.DiskFormat
	Links    []datastore.Link
	Dir      *os.File // the volume's directory; the receiver closes it
}

// OpenForAttach makes this host the disk's owner and opens its directory. Steps:
//
//  1. commit the next epoch with this host as its owner   crash: held by this host, which acquires it again
//  2. finish a growth that was interrupted, and commit what came of it   crash: as 1, still growing
//  3. collect what that manifest does not refer to
//
// 3 must not come before 2: the descriptor may name extents already of which the growing manifest knows nothing.
//
// Readers do not own the disk: they need it released, and the chain's read locks keep writers of this host away.
// Kinds: NotFound, InUse (another host owns it), InProgress, Damaged, NoSpace, ReadOnly.
func (v *Volumes) OpenForAttach(ctx context.Context, id string, readOnly bool) (*Opened, error) {
	s, err := v.begin(ctx, id, "attach")
	if err != nil {
		return nil, err
	}
	defer s.end()
	rec, m, err := s.read()
	if err != nil {
		return nil, err
	}
	if readOnly {
		if !m.Released {
			return nil, fault.New(fault.InUse, "Detach it there first.",
				"disk %s is attached read-write on host %q", id, m.Owner.Host)
		}
		return opened(s.Volume, rec, m, readOnly, lease.Clean)
	}
	var before lease.Before
	if m.State, before, err = lease.Acquire(m.State, v.me); err != nil {
		return nil, fault.Wrap(err, "attach disk %s", id)
	}
	if err := s.Commit(m); err != nil {
		return nil, lost(id, err)
	}
	if m, err = v.prepare(ctx, s.Volume, rec, m); err == nil {
		var o *Opened
		if o, err = opened(s.Volume, rec, m, false, before); err == nil {
			return o, nil
		}
	}
	return nil, errors.Join(err, v.giveBack(s.Volume, m, before))
}

// prepare is steps 2 and 3.
func (v *Volumes) prepare(ctx context.Context, vol *datastore.Volume, rec datastore.Record, m datastore.Manifest) (datastore.Manifest, error) {
	if m.Growing != 0 {
		err := v.engine.Grow(ctx, vol.Dir(), m.Links, m.Growing, host.DiskFormat(rec.Format))
		if err != nil && !errors.Is(err, fault.NoSpace) {
			return m, fault.Wrap(err, "finish the expansion of disk %s", vol.ID())
		}
		if m, err = v.settle(ctx, vol, m, false); err != nil {
			return m, err
		}
	}
	removed, err := vol.Collect(m)
	if err != nil {
		return m, err
	}
	if len(removed) > 0 {
		v.log.Info("unreferenced files removed", "disk", vol.ID(), "files", removed)
	}
	return m, nil
}

// giveBack undoes step 1 when the attach failed, unless the disk was found unclean: it still is.
func (v *Volumes) giveBack(vol *datastore.Volume, m datastore.Manifest, before lease.Before) error {
	if before != lease.Clean {
		return nil
	}
	var err error
	if m.State, err = lease.Release(m.State, v.me); err != nil {
		return err
	}
	return lost(vol.ID(), vol.Commit(m))
}

func opened(vol *datastore.Volume, rec datastore.Record, m datastore.Manifest, readOnly bool, before lease.Before) (*Opened, error) {
	dir, err := fsx.Descriptor(vol.Dir())
	if err != nil {
		return nil, err
	}
	o := &Opened{ID: vol.ID(), UUID: m.UUID, Size: m.Size, ReadOnly: readOnly, Before: before,
		Format: host.DiskFormat(rec.Format), Links: m.Links, Dir: dir}
	if !readOnly {
		o.Epoch = m.Epoch
	}
	return o, nil
}

// Reopen opens the directory of a disk that this host holds under epoch (0: read-only), for a successor of the process
// that served it. Nothing is committed. Kinds: Precondition (not the owner of that epoch any more), NotFound.
func (v *Volumes) Reopen(ctx context.Context, id string, epoch int64) (*Opened, error) {
	s, err := v.begin(ctx, id, "take over")
	if err != nil {
		return nil, err
	}
	defer s.end()
	rec, m, err := s.read()
	if err != nil {
		return nil, err
	}
	if epoch != 0 {
		if err := lease.Holds(m.State, epoch, v.me); err != nil {
			return nil, err
		}
		if m.Owner.BootID != v.me.BootID {
			return nil, fault.New(fault.Precondition, "Attach the disk again.", "disk %s was attached before this machine's last start", id)
		}
	}
	return opened(s.Volume, rec, m, epoch == 0, lease.Crashed)
}

// Release commits the clean release record of epoch. The disk's worker has flushed and closed it; unclean says that it
// has not (it died, or an error poisoned it), so that the disk is checked and closed here first. A disk that this host does
// not hold under epoch is released already. Kinds: InProgress, Damaged, NoSpace.
func (v *Volumes) Release(ctx context.Context, id string, epoch int64, unclean bool) error {
	s, err := v.begin(ctx, id, "detach")
	if err != nil {
		return err
	}
	defer s.end()
	m, err := current(s.Volume)
	if err != nil {
		return err
	}
	if lease.Holds(m.State, epoch, v.me) != nil {
		return nil
	}
	if unclean {
		if err := v.engine.Recover(ctx, s.Dir(), m.Links); err != nil {
			return fault.Wrap(err, "check disk %s", id)
		}
	}
	links, err := v.engine.Inspect(ctx, s.Dir(), m.Links)
	if err != nil {
		return fault.Wrap(err, "release disk %s", id)
	}
	growing := m.Growing
	m = withLinks(m, links)
	if growing <= m.Size {
		m.Growing = 0
	}
	if m.State, err = lease.Release(m.State, v.me); err != nil {
		return err
	}
	return lost(id, s.Commit(m))
}

// Held is what the manifest says about this host.
type Held struct {
	Epoch    int64 // under which this host holds the disk, 0 if it does not
	Rebooted bool  // it held it before this machine's last start: no process of it is left
}

// Held says whether this host holds the disk. Kinds: NotFound, Damaged.
func (v *Volumes) Held(id string) (Held, error) {
	vol, err := v.store.OpenVolume(id)
	if err != nil {
		return Held{}, notThere(id, err)
	}
	defer vol.Close()
	m, err := current(vol)
	if err != nil || m.Released || m.Owner.Host != v.me.Host {
		return Held{}, err
	}
	return Held{Epoch: m.Epoch, Rebooted: m.Owner.BootID != v.me.BootID}, nil
}

// Links are the links that the manifest names, base first. Kinds: NotFound, Damaged.
func (v *Volumes) Links(id string) ([]datastore.Link, error) {
	vol, err := v.store.OpenVolume(id)
	if err != nil {
		return nil, notThere(id, err)
	}
	defer vol.Close()
	m, err := current(vol)
	return m.Links, err
}

// Has says whether the datastore has anything of the disk, complete or not.
func (v *Volumes) Has(id string) (bool, error) {
	vol, err := v.store.OpenVolume(id)
	if err == nil {
		vol.Close()
		return true, nil
	}
	if !errors.Is(err, fault.NotFound) {
		return false, err
	}
	return v.store.HasName(nameKey(id))
}
