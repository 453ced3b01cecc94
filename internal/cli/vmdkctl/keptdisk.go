package vmdkctl

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// KeptDisk is what a worker needs of a disk, and what gives the disk back.
type keptDisk struct {
	label  string
	dir    *os.File
	links  []chain.Ref
	format vmdk.Format
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
func openKept(_ context.Context, r keepRequest, _ *slog.Logger) (*keptDisk, error) {
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

// ReleaseDead gives back what a dead keeper held. Plain files need nothing: their next open finds them not closed cleanly.
func releaseDead(_ attachment, _ *slog.Logger) error { return nil }
