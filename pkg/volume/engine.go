package volume

import (
	"context"
	"errors"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// VMDK is the Engine of real disks.
type VMDK struct{}

var _ Engine = VMDK{}

// Create implements Engine.
func (VMDK) Create(ctx context.Context, d fsx.Dir, n NewLink) (datastore.Link, error) {
	uuid, err := vmdk.ParseUUID(n.UUID)
	if err != nil {
		return datastore.Link{}, err
	}
	info, err := vmdk.Create(ctx, d, n.Descriptor, vmdk.CreateParams{
		Capacity: n.Size, Type: vmdk.Type(n.Type), Format: vmdk.Format(n.Format), UUID: uuid,
		Resume: true, // the directory is this volume's alone
	})
	if err != nil {
		return datastore.Link{}, err
	}
	return linkOf(info), nil
}

// Inspect implements Engine.
func (VMDK) Inspect(ctx context.Context, d fsx.Dir, links []datastore.Link) ([]datastore.Link, error) {
	out := make([]datastore.Link, 0, len(links))
	for _, l := range links {
		if err := ctx.Err(); err != nil {
			return nil, fault.Wrap(err, "inspect %s", l.Descriptor)
		}
		// A manifest will say what is read here. A process that died may have written it and not synced it.
		if err := syncFile(d, l.Descriptor); err != nil {
			return nil, err
		}
		open, err := vmdk.Open(d, l.Descriptor, vmdk.Options{Type: vmdk.Type(l.Type)})
		if err != nil {
			return nil, err
		}
		info := open.Info()
		if err := open.Close(); err != nil {
			return nil, err
		}
		out = append(out, linkOf(info))
	}
	return out, nil
}

func syncFile(d fsx.Dir, name string) error {
	f, err := d.Open(name, fsx.ReadOnly)
	if err != nil {
		return err
	}
	return errors.Join(f.Datasync(), f.Close())
}

// Grow implements Engine.
func (VMDK) Grow(ctx context.Context, d fsx.Dir, links []datastore.Link, size int64, format host.DiskFormat) error {
	return withChain(d, links, format, func(c *chain.Chain) error { return c.Grow(ctx, size) })
}

// Recover implements Engine.
func (VMDK) Recover(_ context.Context, d fsx.Dir, links []datastore.Link) error {
	return withChain(d, links, host.Thin, func(c *chain.Chain) error {
		head := c.Links()[len(c.Links())-1]
		return errors.Join(c.Flush(), head.Rewrite())
	})
}

// withChain opens the chain for writing, which checks and mends an unclean head, and closes it cleanly.
func withChain(d fsx.Dir, links []datastore.Link, format host.DiskFormat, do func(*chain.Chain) error) error {
	head := links[len(links)-1]
	if vmdk.Type(head.Type).Sparse() {
		format = host.Thin // a disk that began thick: only its base takes space ahead
	}
	// The extents of a frozen head may be another disk's parent, whose readers lock them.
	c, err := chain.Open(d, LooseRefs(links), chain.Options{Format: vmdk.Format(format), Locks: !head.Frozen})
	if err != nil {
		return err
	}
	return errors.Join(do(c), c.Close())
}

// Refs is how the chain opens links: with everything that the manifest knows about them.
func Refs(links []datastore.Link) []chain.Ref {
	refs := make([]chain.Ref, len(links))
	for i, l := range links {
		refs[i] = chain.Ref{Name: l.Descriptor, Type: vmdk.Type(l.Type), ExtentNames: l.Extents, Size: l.Size}
	}
	return refs
}

// LooseRefs is Refs for a head whose growth may have been interrupted: its descriptor has the last word about how much
// larger it is, and about its extents, whose names a Link's own rules bind to the directory.
func LooseRefs(links []datastore.Link) []chain.Ref {
	refs := Refs(links)
	if n := len(refs); n > 0 {
		refs[n-1].ExtentNames, refs[n-1].Growing = nil, true
	}
	return refs
}

func linkOf(i *vmdk.Info) datastore.Link {
	l := datastore.Link{
		Descriptor: i.Name, Type: string(i.Type), CID: i.CID.String(), ParentCID: i.ParentCID.String(), Size: i.Capacity,
		LongID: i.LongID,
	}
	for _, e := range i.Extents {
		l.Extents = append(l.Extents, e.Name)
	}
	return l
}
