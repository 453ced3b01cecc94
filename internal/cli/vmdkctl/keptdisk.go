package vmdkctl

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// KeptDisk is what a worker needs of a disk, and what gives the disk back.
type keptDisk struct {
	label  string
	dir    *os.File
	links  []chain.Ref
	format vmdk.Format
	// Volumes is the datastore of a volume; nil for plain files.
	volumes *volume.Volumes
	// Release gives a volume back; clean says that its worker has closed it. nil for plain files.
	release func(clean bool) error
}

func (d *keptDisk) close(clean bool) error {
	err := d.dir.Close()
	if d.release != nil {
		err = errors.Join(err, d.release(clean))
	}
	return err
}

// OpenKept opens the disk of a request.
func openKept(ctx context.Context, r keepRequest, log *slog.Logger) (*keptDisk, error) {
	if r.Volume != "" {
		return openVolume(ctx, r, log)
	}
	d := &keptDisk{label: filepath.Join(r.Path, r.Names[len(r.Names)-1]), format: vmdk.Thin}
	for _, n := range r.Names {
		d.links = append(d.links, chain.Ref{Name: n})
	}
	dir, err := fsx.OpenRoot(r.Path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	d.dir, err = fsx.Descriptor(dir)
	return d, err
}

// OpenVolume claims a volume for this machine.
func openVolume(ctx context.Context, r keepRequest, log *slog.Logger) (*keptDisk, error) {
	store, volumes, err := openVolumes(r.Datastore, log)
	if err != nil {
		return nil, err
	}
	o, err := volumes.OpenForAttach(ctx, r.Volume, r.ReadOnly)
	if err != nil {
		store.Close()
		return nil, err
	}
	return &keptDisk{
		label: r.Name, dir: o.Dir, links: o.Refs, format: vmdk.Format(o.Format), volumes: volumes,
		release: func(clean bool) error {
			defer store.Close()
			if o.ReadOnly {
				return nil
			}
			ctx, cancel := context.WithTimeout(context.Background(), closeTime)
			defer cancel()
			return volumes.Release(ctx, o.ID, o.Epoch, !clean)
		},
	}, nil
}

// OpenVolumes opens the datastore in the directory root, as this machine works with it.
func openVolumes(root string, log *slog.Logger) (*datastore.Datastore, *volume.Volumes, error) {
	me, err := thisMachine()
	if err != nil {
		return nil, nil, err
	}
	store, err := datastore.OpenPath(root, datastore.Options{})
	if err != nil {
		return nil, nil, err
	}
	return store, volume.New(volume.Config{Store: store, Name: root, Host: me, Engine: volume.VMDK{}, Log: log}), nil
}

// ThisMachine is the owner that a manifest names. It is another one than the machine's hostd, so that neither takes what
// the other has attached for its own disk left by a crash.
func thisMachine() (lease.Identity, error) {
	name, err := os.Hostname()
	if err != nil {
		return lease.Identity{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return lease.Identity{}, err
	}
	return lease.Identity{Host: name + "/vmdkctl", BootID: strings.TrimSpace(string(boot))}, nil
}

// ReleaseDead gives back what a dead keeper held: the disk is checked, closed and released. Plain files need nothing: their
// next open finds them not closed cleanly.
func releaseDead(ctx context.Context, att attachment, log *slog.Logger) error {
	if att.Volume == "" || att.ReadOnly {
		return nil
	}
	store, volumes, err := openVolumes(att.Datastore, log)
	if err != nil {
		return err
	}
	defer store.Close()
	v, err := readVolume(att.Datastore, att.Volume)
	if err != nil {
		return err
	}
	// What this machine does not hold under this epoch counts as released.
	return volumes.Release(ctx, att.Volume, v.Manifest.Epoch, true)
}
