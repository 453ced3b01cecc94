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
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
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
	Refs     []chain.Ref // how the chain opens the links
	NoLocks  bool        // the datastore takes no byte locks: the chain must not either
	Dir      *os.File    // the volume's directory; the receiver closes it
}

// OpenForAttach makes this host the disk's owner and opens its directory. Steps:
//
//  1. commit the next epoch with this host as its owner   crash: held by this host, which acquires it again
//  2. tidy: finish a growth or merge that was interrupted, collect        crash: as 1
//  3. give a frozen head a child, or thaw it                              crash: as 1
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
	if err = living(id, m, err); err != nil {
		return nil, err
	}
	if readOnly {
		if !m.Released {
			return nil, fault.New(fault.InUse, "Detach it there first.",
				"disk %s is attached read-write on host %q", id, m.Owner.Host)
		}
		if m.Behind != "" || m.Merge != nil {
			return nil, fault.New(fault.InProgress, "Try again: it is finished before long.", "the links of disk %s are being merged", id)
		}
		return v.opened(s.Volume, rec, m, readOnly, lease.Clean)
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
		if o, err = v.opened(s.Volume, rec, m, false, before); err == nil {
			return o, nil
		}
	}
	return nil, errors.Join(err, v.giveBack(s.Volume, m, before))
}

// prepare is steps 2 and 3. A head that is not clean is left to who opens the chain.
func (v *Volumes) prepare(ctx context.Context, vol *datastore.Volume, rec datastore.Record, m datastore.Manifest) (datastore.Manifest, error) {
	m, err := v.tidy(ctx, vol, rec, m, tidying{mend: true})
	if err != nil {
		return m, err
	}
	return v.writable(ctx, vol, m, m.Size)
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

func (v *Volumes) opened(vol *datastore.Volume, rec datastore.Record, m datastore.Manifest, readOnly bool, before lease.Before) (*Opened, error) {
	refs, err := mendable(vol.Dir(), m.Links)
	if err != nil {
		return nil, err
	}
	dir, err := fsx.Descriptor(vol.Dir())
	if err != nil {
		return nil, err
	}
	o := &Opened{ID: vol.ID(), UUID: m.UUID, Size: m.Size, ReadOnly: readOnly, Before: before,
		Format: host.DiskFormat(rec.Format), Links: m.Links, Refs: refs, Dir: dir, NoLocks: v.store.NoLocks()}
	if vmdk.Type(m.Head().Type).Sparse() {
		o.Format = host.Thin // only a base takes space ahead
	}
	if !readOnly {
		o.Epoch = m.Epoch
	}
	return o, nil
}

// Reopen opens the directory of a disk that this host holds under epoch (0: read-only), for a successor of the process
// that served it, which is dead. Descriptors that a merge left behind are rebound and that is committed; nothing else is.
// Kinds: Precondition (not the owner of that epoch any more), NotFound.
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
		if m, err = v.rebound(ctx, s.Volume, m); err != nil {
			return nil, err
		}
	}
	return v.opened(s.Volume, rec, m, epoch == 0, lease.Crashed)
}

// rebound rebinds the descriptors that a merge left behind, and commits that. Nobody has the chain open.
func (v *Volumes) rebound(ctx context.Context, vol *datastore.Volume, m datastore.Manifest) (datastore.Manifest, error) {
	if m.Behind == "" {
		return m, nil
	}
	if err := v.repair(ctx, vol, m, tidying{}); err != nil {
		return m, fault.Wrap(err, "disk %s", vol.ID())
	}
	m.Behind, m.State = "", lease.Next(m.State)
	return m, lost(vol.ID(), vol.Commit(m))
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
	if err := v.repair(ctx, s.Volume, m, tidying{mend: true, recover: unclean}); err != nil {
		return fault.Wrap(err, "check disk %s", id)
	}
	m.Merge, m.Behind = nil, ""
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
	Last     bool  // it owns the disk, or is the one that owned it last
	Retired  bool  // nobody attaches the disk any more
}

// Held says whether this host holds the disk. Kinds: NotFound, Damaged.
func (v *Volumes) Held(id string) (Held, error) {
	vol, err := v.store.OpenVolume(id)
	if err != nil {
		return Held{}, notThere(id, err)
	}
	defer vol.Close()
	m, err := current(vol)
	if err != nil || m.Owner.Host != v.me.Host {
		return Held{Retired: m.Retired}, err
	}
	held := Held{Last: true, Retired: m.Retired}
	if !m.Released {
		held.Epoch, held.Rebooted = m.Epoch, m.Owner.BootID != v.me.BootID
	}
	return held, nil
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
