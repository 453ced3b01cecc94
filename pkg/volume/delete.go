package volume

import (
	"context"
	"errors"

	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
)

// Delete removes the disk; one that is not there is deleted already. The caller knows that this host does not have it
// attached. A disk that has snapshots is retired instead: one commit, with the next epoch and released, drops the links above
// its last snapshot; its name stays taken until DeleteSnapshot removes the last one. Steps for the others:
//
//  1. acquire the next epoch with a manifest that says "deleting": the commit point, no host can attach any more
//  2. free the name                               crash: the directory is left; Delete or Create of the name finds it
//  3. rename the directory away, remove its files crash: a remainder that the next Open or Delete sweeps
//
// Kinds: InUse (another host holds it), InProgress, Damaged.
func (v *Volumes) Delete(ctx context.Context, id string) error {
	s, err := v.begin(ctx, id, "delete")
	if errors.Is(err, fault.NotFound) {
		return v.deleteRemainder(id)
	}
	if err != nil {
		return err
	}
	defer s.end()
	m, ok, err := s.Latest()
	if err != nil {
		return err
	}
	if ok && m.Retired {
		return nil
	}
	if ok && !m.Deleting {
		old := m
		m = trimmed(m)
		if m.State, _, err = lease.Acquire(m.State, v.me); err != nil {
			return fault.Wrap(err, "delete disk %s", id)
		}
		m.Released = m.Retired
		if err := s.Commit(m); err != nil {
			return lost(id, err)
		}
		if m.Retired {
			v.dropGone(s.Volume, old, m)
			v.log.Info("disk retired: its links stay for its snapshots", "disk", id, "snapshots", len(m.Snapshots))
			return nil
		}
	}
	if err := v.remove(s.Volume); err != nil {
		return err
	}
	v.log.Info("disk deleted", "disk", id)
	return nil
}

// remove is steps 2 and 3.
func (v *Volumes) remove(vol *datastore.Volume) error {
	if err := v.store.Free(nameKey(vol.ID())); err != nil {
		return err
	}
	return v.store.Discard(vol)
}

// deleteRemainder removes what a creation or deletion of id left that never got as far as a record, or beyond it.
func (v *Volumes) deleteRemainder(id string) error {
	unlock, err := v.busy.TryLock(id, "delete")
	if err != nil {
		return err
	}
	defer unlock()
	if vol, err := v.store.OpenVolume(id); err == nil {
		defer vol.Close()
		return v.remove(vol)
	} else if !errors.Is(err, fault.NotFound) {
		return err
	}
	if err := v.store.Free(nameKey(id)); err != nil {
		return err
	}
	return v.store.SweepDeleted(id)
}

// finishDelete removes the directory of an earlier disk of this id whose deletion, or failed creation, stopped after it
// freed the name. The name's new record stays.
func (v *Volumes) finishDelete(id string) error {
	vol, err := v.store.OpenVolume(id)
	if err != nil {
		return err
	}
	defer vol.Close()
	if err := vol.Lock(); err != nil {
		return err
	}
	m, ok, err := vol.Latest()
	if err != nil {
		return err
	}
	if ok && !m.Deleting {
		return fault.New(fault.Damaged, "Look into the datastore: somebody removed the name record of a disk that exists.",
			"volume %s belongs to a disk of uuid %s, its name to another one", id, m.UUID)
	}
	return v.store.Discard(vol)
}

// lost explains a commit that somebody else won.
func lost(id string, err error) error {
	if errors.Is(err, fault.Exists) {
		return fault.New(fault.InProgress, "Try again.", "disk %s: another host changed it at the same time", id)
	}
	return err
}
