package vmdkctl

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/loop"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// OnStore is a datastore that a command works on.
type onStore struct {
	root    string
	store   *datastore.Datastore
	volumes *volume.Volumes
}

func (s *onStore) Close() { s.store.Close() }

// OpenStore opens the datastore at root, which must be one already.
func openStore(root string) (*onStore, error) {
	if root == "" {
		return nil, cli.Usage{Err: fault.New(fault.Invalid, "Add --datastore DIR.", "snapshots are kept on a datastore")}
	}
	if !isDatastore(root) {
		return nil, noDatastore(root)
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	store, volumes, err := openVolumes(abs, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	return &onStore{abs, store, volumes}, nil
}

// AVolume is a disk on its datastore.
type aVolume struct {
	*onStore
	id, name string
}

// OpenDisk finds the disk that arg names, which must be a volume, and opens its datastore; plain says what to do with a
// disk that is just files.
func (a *app) openDisk(arg, plain string) (*aVolume, error) {
	f, err := a.find(arg)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	v := f.Volume
	if v == nil {
		return nil, fault.New(fault.Unsupported, plain, "%s is plain files: no manifest says which of its links are needed", arg)
	}
	if len(f.Names) < len(v.Manifest.Links) {
		return nil, fault.New(fault.Invalid, "Name the disk: its directory, or --datastore DIR and its id or name.",
			"%s is not the head of the disk %s", f.Head(), v.Record.Name)
	}
	path, err := filepath.Abs(f.Path)
	if err != nil {
		return nil, err
	}
	s, err := openStore(filepath.Dir(filepath.Dir(path)))
	if err != nil {
		return nil, err
	}
	return &aVolume{s, v.Record.ID, v.Record.Name}, nil
}

// Keeper is the attachment of the disk by vmdkctl on this machine; ok is false if it is not attached so. Kinds: InUse (its
// keeper died, or somebody else shows it as a device here).
//
// What this process does to a disk it does under the identity that keepers have too: the lease does not keep it from a disk
// that one of them serves, so this must.
func (v *aVolume) keeper(ctx context.Context) (att attachment, ok bool, err error) {
	att, err = theRunDir().find(ctx, v.id)
	// The id stands for a name, which a disk of another datastore may have as well. A reader does not own the disk.
	if err == nil && realPath(att.Datastore) == realPath(v.root) && !att.ReadOnly {
		if att.State == keeperDied {
			err = fault.New(fault.InUse, "`vmdkctl detach "+att.Device+"` gives it back.", "the keeper of the disk %s died", v.name)
		}
		return att, err == nil, err
	}
	if err != nil && !errors.Is(err, fault.NotFound) {
		return attachment{}, false, err
	}
	return attachment{}, false, v.notShown()
}

// NotShown refuses a disk that this machine's vmdkctl holds and that is a device, though no keeper is known: it may have been
// attached with another run directory.
func (v *aVolume) notShown() error {
	me, err := thisMachine()
	if err != nil {
		return err
	}
	k, err := readVolumeOn(v.store, v.id)
	if err != nil || k.Manifest.Released || k.Manifest.Owner != me {
		return err
	}
	devices, err := loop.FindByName(v.id)
	if err == nil && len(devices) > 0 {
		err = fault.New(fault.InUse, "`vmdkctl detach` it where it was attached (VMDKCTL_RUN_DIR).", "%s shows the disk %s", devices[0].Path, v.name)
	}
	return err
}

// SnapshotID is the id that a snapshot's id or name stands for.
func snapshotID(idOrName string) string {
	if host.ValidSnapshotID(idOrName) {
		return idOrName
	}
	return host.SnapshotID(idOrName)
}
