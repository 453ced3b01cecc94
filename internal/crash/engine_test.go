package crash

import (
	"context"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// engine is the real one. It notes what pkg/vmdk promises by itself, because its other callers have no manifest: a disk
// that has grown stays so.
type engine struct {
	volume.VMDK
	fs *sim.FS
}

func (e engine) Grow(ctx context.Context, d fsx.Dir, links []datastore.Link, size int64, format host.DiskFormat) error {
	err := e.VMDK.Grow(ctx, d, links, size, format)
	if err == nil {
		e.fs.Mark(event{op: "grow", done: true, size: size})
	}
	return err
}

// Grow is the same for a disk that is attached.
func (a *attached) Grow(ctx context.Context, size int64) error {
	err := a.Chain.Grow(ctx, size)
	if err == nil {
		a.fs.Mark(event{op: "grow", done: true, size: size})
	}
	return err
}
