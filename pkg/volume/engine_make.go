package volume

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"syscall"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Child implements Engine.
func (VMDK) Child(ctx context.Context, d fsx.Dir, parent string, n NewLink) (datastore.Link, error) {
	l, err := vmdk.Open(d, parent, vmdk.Options{})
	if err != nil {
		return datastore.Link{}, err
	}
	as := l.AsParent()
	adapter, _ := l.Descriptor().Get("ddb.adapterType")
	if err := l.Close(); err != nil {
		return datastore.Link{}, err
	}
	info, err := vmdk.Create(ctx, d, n.Descriptor, vmdk.CreateParams{
		Capacity: n.Size, Type: vmdk.TwoGbMaxExtentSparse, AdapterType: adapter, Parent: as, Resume: true,
	})
	if err != nil {
		return datastore.Link{}, err
	}
	return linkOf(info), nil
}

// Share implements Engine. Steps:
//
//  1. link every extent, or copy it and make the copy durable   a crash until 4 leaves files that no manifest names
//  2. copy the descriptors, with the new names, durably
//  3. rebind them: they are what links says, whatever the source's descriptors said
//  4. make the names durable
func (VMDK) Share(ctx context.Context, from fsx.Dir, links []datastore.Link, to fsx.Dir, n Shared) ([]datastore.Link, error) {
	out := make([]datastore.Link, len(links))
	for i, l := range links {
		next := l
		next.Descriptor, next.Extents, next.Frozen = n.rename(l.Descriptor), nil, false
		embedded := vmdk.Type(l.Type).Embedded()
		if embedded { // the shared file's descriptor stays the source's
			next.Type = string(vmdk.TwoGbMaxExtentSparse)
		}
		for _, e := range l.Extents {
			as := n.rename(e)
			if embedded {
				as = strings.TrimSuffix(as, ".vmdk") + "-s001.vmdk"
			}
			if err := ctx.Err(); err != nil {
				return nil, fault.Wrap(err, "share %s", e)
			}
			if err := shareFile(ctx, from, e, to, as); err != nil {
				return nil, fault.Wrap(full(err), "share %s", e)
			}
			next.Extents = append(next.Extents, as)
		}
		if err := copyDescriptor(from, l, to, next); err != nil {
			return nil, fault.Wrap(full(err), "copy %s", l.Descriptor)
		}
		out[i] = next
	}
	if err := chain.Rebind(to, identities(out, n.UUID, true)); err != nil {
		return nil, full(err)
	}
	return out, to.Sync()
}

func (n Shared) rename(name string) string {
	if n.Prefix == "" {
		return name
	}
	return n.Prefix + strings.TrimPrefix(name, "disk")
}

// shareFile gives to a name of the file, or a copy where the file system has no (further) hard links.
func shareFile(ctx context.Context, from fsx.Dir, name string, to fsx.Dir, as string) error {
	err := to.LinkFrom(from, name, as)
	if errors.Is(err, fs.ErrExist) && sameFile(from, name, to, as) {
		return nil // the answer to a link that was made got lost (link(2), BUGS)
	}
	if kind := fault.KindOf(err); kind != fault.Unsupported && kind != fault.Exhausted {
		return err
	}
	return copyFile(ctx, from, name, to, as)
}

func sameFile(from fsx.Dir, name string, to fsx.Dir, as string) bool {
	a, err1 := from.Stat(name)
	b, err2 := to.Stat(as)
	return err1 == nil && err2 == nil && a.Inode == b.Inode && a.Device == b.Device
}

// copyStep bounds what is copied between two looks at the context.
const copyStep = 64 << 20

func copyFile(ctx context.Context, from fsx.Dir, name string, to fsx.Dir, as string) (err error) {
	src, err := from.Open(name, fsx.ReadOnly)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := to.Open(as, fsx.ReadWrite|fsx.Create|fsx.Exclusive)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	for off := int64(0); off < info.Size; off += copyStep {
		if err := ctx.Err(); err != nil {
			return fault.Wrap(err, "copy %s", name)
		}
		if err := dst.Clone(src, off, off, min(copyStep, info.Size-off)); err != nil {
			return err
		}
	}
	return dst.Datasync()
}

// copyDescriptor writes the descriptor of a link with other extent names. It stands alone, also where the link's does not.
func copyDescriptor(from fsx.Dir, l datastore.Link, to fsx.Dir, as datastore.Link) (err error) {
	open, err := vmdk.Open(from, l.Descriptor, vmdk.Options{Type: vmdk.Type(l.Type), ExtentNames: l.Extents})
	if err != nil {
		return err
	}
	desc := open.Descriptor()
	if err := open.Close(); err != nil {
		return err
	}
	lines := desc.Extents()
	for i := range lines {
		lines[i].Name = as.Extents[i]
	}
	if as.Type != l.Type {
		if err := desc.Set("createType", as.Type); err != nil {
			return err
		}
	}
	if err := desc.SetExtents(lines); err != nil {
		return err
	}
	f, err := to.Open(as.Descriptor, fsx.ReadWrite|fsx.Create|fsx.Exclusive)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.WriteAt(desc.Text(), 0); err != nil {
		return err
	}
	return f.Datasync()
}

// full tells a full datastore as such also where only a sync found out (NFS): the caller collects the files, so nothing
// about them is uncertain.
func full(err error) error {
	if fault.KindOf(err) != fault.NoSpace && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)) {
		return fault.New(fault.NoSpace, "Free space on the datastore or enlarge it.", "%w", err)
	}
	return err
}

// flattenStep is how much is copied at once.
const flattenStep = 1 << 20

// Flatten implements Engine. The base is durable and closed cleanly when it returns.
func (e VMDK) Flatten(ctx context.Context, d fsx.Dir, links []datastore.Link, n NewLink, progress func(done, total int64)) (datastore.Link, error) {
	if _, err := e.Create(ctx, d, n); err != nil {
		return datastore.Link{}, err
	}
	src, err := chain.Open(d, Refs(links), chain.Options{ReadOnly: true, Locks: true})
	if err != nil {
		return datastore.Link{}, err
	}
	dst, err := chain.Open(d, []chain.Ref{{Name: n.Descriptor}}, chain.Options{Format: vmdk.Format(n.Format), Locks: true})
	if err != nil {
		return datastore.Link{}, errors.Join(err, src.Close())
	}
	err = copyContent(ctx, dst, src, progress)
	if err == nil {
		err = dst.Flush()
	}
	if err = errors.Join(err, dst.Close(), src.Close()); err != nil {
		return datastore.Link{}, full(err)
	}
	made, err := e.Inspect(ctx, d, []datastore.Link{{Descriptor: n.Descriptor, Type: string(n.Type)}})
	if err != nil {
		return datastore.Link{}, err
	}
	return made[0], nil
}

// copyContent writes what src has and is not zeros.
func copyContent(ctx context.Context, dst, src *chain.Chain, progress func(done, total int64)) error {
	var data []chain.Extent
	var total, done int64
	for x, err := range src.Map(0, src.Size()) {
		if err != nil {
			return err
		}
		if x.Data && !x.Zero {
			data, total = append(data, x), total+x.Length
		}
	}
	buf := fsx.AlignedBuffer(flattenStep)
	for _, x := range data {
		for off := x.Start; off < x.Start+x.Length; {
			if err := ctx.Err(); err != nil {
				return fault.Wrap(err, "flatten")
			}
			part := buf[:min(flattenStep, x.Start+x.Length-off)]
			if _, err := src.ReadAt(part, off); err != nil {
				return err
			}
			if !zeros(part) {
				if _, err := dst.WriteAt(part, off); err != nil {
					return err
				}
			}
			off, done = off+int64(len(part)), done+int64(len(part))
			if progress != nil {
				progress(done, total)
			}
		}
	}
	return nil
}

func zeros(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
