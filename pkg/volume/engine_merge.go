package volume

import (
	"context"
	"errors"
	"io/fs"
	"strconv"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Mend implements Engine.
func (VMDK) Mend(ctx context.Context, d fsx.Dir, links []datastore.Link) error {
	for _, l := range links {
		if err := ctx.Err(); err != nil {
			return fault.Wrap(err, "mend %s", l.Descriptor)
		}
		alone, err := unshared(d, l)
		if err == nil && alone {
			err = chain.Mend(d, l.Descriptor)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Rebind implements Engine.
func (VMDK) Rebind(_ context.Context, d fsx.Dir, links []datastore.Link, uuid string, head bool) error {
	return chain.Rebind(d, identities(links, uuid, head))
}

// identities are what the descriptors of links must say. The content ID of the head changes with every use; head says that
// links knows it all the same.
func identities(links []datastore.Link, uuid string, head bool) []chain.Identity {
	out := make([]chain.Identity, len(links))
	for i, l := range links {
		out[i] = chain.Identity{Name: l.Descriptor, CID: parseCID(l.CID), LongID: l.LongID, ParentCID: vmdk.NoParent}
		if i > 0 {
			out[i].ParentCID, out[i].Parent = parseCID(links[i-1].CID), links[i-1].Descriptor
		} else {
			out[i].UUID = uuid
		}
		if i == len(links)-1 && !head {
			out[i].CID, out[i].LongID = 0, ""
		}
	}
	return out
}

// parseCID reads what vmdk.CID.String wrote; a manifest has nothing else.
func parseCID(s string) vmdk.CID {
	n, _ := strconv.ParseUint(s, 16, 32)
	return vmdk.CID(n)
}

// Merge implements Engine.
func (VMDK) Merge(ctx context.Context, d fsx.Dir, links []datastore.Link, p chain.MergeParams) error {
	refs, err := mendable(d, links)
	if err != nil {
		return err
	}
	c, err := chain.Open(d, refs, chain.Options{Locks: !links[len(links)-1].Frozen})
	if err != nil {
		return err
	}
	return errors.Join(c.Merge(ctx, p), c.Close())
}

// MergeCost implements Engine.
func (VMDK) MergeCost(_ context.Context, d fsx.Dir, links []datastore.Link, lower int) (down, up int64, err error) {
	c, err := chain.Open(d, Refs(links), chain.Options{ReadOnly: true})
	if err != nil {
		return 0, 0, err
	}
	down, up, err = c.MergeCost(lower)
	return down, up, errors.Join(err, c.Close())
}

// mendable is Refs with leave to mend the parents whose extents no other disk shares.
func mendable(d fsx.Dir, links []datastore.Link) ([]chain.Ref, error) {
	refs := Refs(links)
	for i, l := range links[:len(links)-1] {
		var err error
		if refs[i].Mend, err = unshared(d, l); err != nil {
			return nil, err
		}
	}
	return refs, nil
}

// unshared says that no other directory names the link's extents. The files are opened for it, because an NFS client
// answers from what it remembers until then (close-to-open).
func unshared(d fsx.Dir, l datastore.Link) (bool, error) {
	for _, e := range l.Extents {
		f, err := d.Open(e, fsx.ReadOnly)
		if errors.Is(err, fs.ErrNotExist) {
			return false, fault.New(fault.Damaged, "Restore the file from a backup.", "%s of link %s is missing: %v", e, l.Descriptor, err)
		}
		if err != nil {
			return false, err
		}
		info, err := f.Stat()
		if err = errors.Join(err, f.Close()); err != nil || info.Links != 1 {
			return false, err
		}
	}
	return true, nil
}
