package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"

	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
)

// headDescriptor is the base link's descriptor in every volume.
const headDescriptor = "disk.vmdk"

// Create is CreateFrom with a source, if any, that is not attached on this host.
func (v *Volumes) Create(ctx context.Context, spec host.DiskSpec) (host.Disk, error) {
	return v.CreateFrom(ctx, spec, nil)
}

// CreateFrom makes the disk, or returns it when it exists with the same specification. source is the worker that serves the
// source's disk on this host, nil if there is none. Steps:
//
//  1. reserve the name: publish its record        crash: the name is taken, a retry continues with its uuid
//  2. make the volume's directory and record      crash: as 1
//  3. collect what an interrupted attempt left
//  4. make extents and descriptor, durable (with a source: restore)   crash: unreferenced files, collected by 3 of the retry
//  5. commit manifest 1-1, released               the commit point: from here on the disk exists
//
// A definite failure of 3 to 5 collects the files, and gives the name back if this call reserved it.
//
// Kinds: Invalid, OutOfRange (also smaller than the source), NotFound (the source: missing, being made, deleted or retired),
// Exists (another specification, or the name of a retired disk), InProgress, NoSpace, ReadOnly, InUse (the source is attached
// on another host), Exhausted (the chain would be too long).
func (v *Volumes) CreateFrom(ctx context.Context, spec host.DiskSpec, source Server) (host.Disk, error) {
	spec.Datastore = v.name
	spec, err := spec.Normalize()
	if err != nil {
		return host.Disk{}, err
	}
	id := host.DiskID(spec.Name)
	unlock, err := v.busy.TryLock(id, "create")
	if err != nil {
		return host.Disk{}, err
	}
	defer unlock()
	// The second round follows the removal of a half-deleted disk of this name.
	for range 2 {
		d, again, err := v.create(ctx, id, spec, source)
		if !again {
			return d, err
		}
	}
	return host.Disk{}, fault.New(fault.InProgress, "Try again.", "disk %s is being deleted", id)
}

func (v *Volumes) create(ctx context.Context, id string, spec host.DiskSpec, source Server) (d host.Disk, again bool, err error) {
	if err := ctx.Err(); err != nil {
		return host.Disk{}, false, fault.Wrap(err, "create disk %s", id)
	}
	rec, reserved, err := v.reserve(id, spec)
	if err != nil {
		return host.Disk{}, false, err
	}
	vol, err := v.store.MakeVolume(rec)
	if errors.Is(err, fault.Precondition) {
		return host.Disk{}, true, v.finishDelete(id)
	}
	if err == nil {
		defer vol.Close()
		err = vol.Lock()
	}
	if err != nil {
		return host.Disk{}, false, v.undo(nil, rec, reserved, err)
	}
	m, ok, err := vol.Latest()
	switch {
	case err != nil:
		return host.Disk{}, false, err
	case ok && m.Deleting:
		return host.Disk{}, true, v.remove(vol)
	case ok && m.Retired:
		return host.Disk{}, false, fault.New(fault.Exists, "Use another name, or delete those snapshots first.",
			"disk %s was deleted, and %d snapshots still need its links", id, len(m.Snapshots))
	case ok:
		return v.describe(vol, rec, m), false, nil
	}
	m, err = v.build(ctx, vol, rec, source)
	if err != nil {
		return host.Disk{}, false, v.undo(vol, rec, reserved, err)
	}
	v.log.Info("disk created", "disk", id, "size", m.Size, "type", rec.Type, "format", rec.Format)
	return v.describe(vol, rec, m), false, nil
}

// reserve is step 1: the record that owns the name, if it is one of this specification.
func (v *Volumes) reserve(id string, spec host.DiskSpec) (rec datastore.Record, made bool, err error) {
	if rec, err = v.store.Reserved(nameKey(id)); errors.Is(err, fs.ErrNotExist) {
		// Room is checked before anything is made; ENOSPC on the way is handled besides, because others write too.
		if err := v.checkSpace(spec); err != nil {
			return datastore.Record{}, false, err
		}
		if err := v.checkSource(spec); err != nil {
			return datastore.Record{}, false, err
		}
		want := datastore.Record{
			ID: id, Key: nameKey(id), Name: spec.Name, UUID: newUUID(), Size: spec.Size,
			Format: string(spec.Format), Type: string(spec.Type), CloneMode: string(spec.CloneMode),
		}
		if spec.Source != nil {
			want.Source = &datastore.Source{Snapshot: spec.Source.Snapshot, Disk: spec.Source.Disk}
		}
		rec, made, err = v.store.Reserve(want)
	}
	if err != nil {
		return datastore.Record{}, false, err
	}
	return rec, made, v.spec(rec).Matches(spec)
}

// build is steps 3 to 5.
func (v *Volumes) build(ctx context.Context, vol *datastore.Volume, rec datastore.Record, source Server) (datastore.Manifest, error) {
	var m datastore.Manifest
	if _, err := vol.Collect(m); err != nil {
		return m, err
	}
	if rec.Source != nil {
		return v.restore(ctx, vol, rec, source)
	}
	link, err := v.engine.Create(ctx, vol.Dir(), NewLink{
		Descriptor: headDescriptor, UUID: rec.UUID, Size: rec.Size,
		Format: host.DiskFormat(rec.Format), Type: host.DiskType(rec.Type),
	})
	if err != nil {
		return m, fault.Wrap(err, "create disk %s", rec.ID)
	}
	m = datastore.Manifest{
		UUID:  rec.UUID,
		State: lease.State{Epoch: 1, Seq: 1, Owner: v.me, Released: true},
		Size:  link.Size, Links: []datastore.Link{link},
	}
	return m, lost(rec.ID, vol.Commit(m))
}

// uncommitted is a failure before this disk's commit was tried, of whatever kind.
type uncommitted struct{ error }

func (u uncommitted) Unwrap() error { return u.error }

// undo removes what this call made, after err. What cannot be removed now is garbage that a retry collects.
func (v *Volumes) undo(vol *datastore.Volume, rec datastore.Record, reserved bool, err error) error {
	kind := fault.KindOf(err)
	if !errors.As(err, new(uncommitted)) && (kind == fault.Poisoned || kind == fault.InProgress || kind == fault.Exists) {
		return err // unknown, or somebody else's: nothing is surely ours to remove
	}
	var uerr error
	if vol != nil {
		// Without working locks another host may have finished the disk meanwhile: then nothing here is garbage.
		if _, done, lerr := vol.Latest(); done || lerr != nil {
			return err
		}
		_, uerr = vol.Collect(datastore.Manifest{})
	}
	if reserved && uerr == nil {
		if uerr = v.store.Free(rec.Key); uerr == nil && vol != nil {
			uerr = v.store.Discard(vol)
		}
	}
	if uerr != nil {
		v.log.Warn("what a failed creation made was not removed; a retry or a delete will", "disk", rec.ID, "error", uerr)
	}
	return err
}

// checkSpace refuses a thick disk that cannot fit.
func (v *Volumes) checkSpace(spec host.DiskSpec) error {
	if spec.Format == host.Thin {
		return nil
	}
	_, free, err := v.store.Space()
	if err != nil {
		return err
	}
	if spec.Size > free {
		return fault.New(fault.NoSpace, "Free space on the datastore, enlarge it, or ask for diskFormat thin.",
			"datastore %s has %d MiB free; a %s disk of %d MiB does not fit", v.name, free>>20, spec.Format, spec.Size>>20)
	}
	return nil
}

// newUUID is a ddb.uuid like VMware's own: 60 00 C2 9 and random digits, which is the NAA identifier that a guest sees
// (knowledge base article 1009458).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	copy(b[:], []byte{0x60, 0x00, 0xc2})
	b[3] = 0x90 | b[3]&0x0f
	return hex.EncodeToString(b[:])
}
