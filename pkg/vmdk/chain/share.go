package chain

import (
	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// ShareTo makes [off, off+n) of dst, which reads as zeros, the content of this disk's range, by letting dst share its blocks. Kind:
// Unsupported (the file system or what is stored there does not allow it; a part may be shared already: copy all).
func (c *Chain) ShareTo(dst fsx.File, off, n int64) error {
	return c.share(off, n, func(e *vmdk.Extent, from, off, n int64) error { return e.ShareWith(dst, from, off, n) })
}

// ShareFrom is ShareTo with a disk as destination: its range reads as zeros, and nobody uses it yet, because a grain is there before it
// has its content.
func (c *Chain) ShareFrom(src *Chain, off, n int64) error {
	return src.share(off, n, func(e *vmdk.Extent, from, off, n int64) error {
		if err := c.enterWrite(off, n); err != nil {
			return err
		}
		defer c.leave()
		return c.shareInto(len(c.links)-1, e, from, off, n)
	})
}

// share calls put for each piece of [off, off+n) that is stored, wherever in the chain.
func (c *Chain) share(off, n int64, put func(e *vmdk.Extent, from, off, n int64) error) error {
	if err := c.enter(off, n); err != nil {
		return err
	}
	defer c.leave()
	return c.shareLink(len(c.links)-1, off, n, put)
}

func (c *Chain) shareLink(i int, off, n int64, put func(e *vmdk.Extent, from, off, n int64) error) error {
	if i < 0 {
		return nil
	}
	return c.parts(i, off, n, func(p part) error {
		e := c.links[i].At(p.off)
		switch p.state {
		case vmdk.Zeroed:
			return nil
		case vmdk.Unallocated:
			return c.shareLink(i-1, p.off, p.n, put)
		}
		r, err := e.Run(p.off-e.Start, p.n)
		if err != nil {
			return err
		}
		if r.Packed || r.State != vmdk.Allocated {
			return fault.New(fault.Unsupported, "", "extent %s is not stored as it reads", e.Name)
		}
		return put(e, r.Offset, p.off, p.n)
	})
}

// shareInto lets [off, off+n) of link i share the bytes at from of src's file. Grains that are missing are made first, as zeros.
func (c *Chain) shareInto(i int, src *vmdk.Extent, from, off, n int64) error {
	for n > 0 {
		e := c.links[i].At(off)
		if err := c.beginExtent(e); err != nil {
			return err
		}
		r, err := e.Run(off-e.Start, min(n, e.End()-off))
		if err != nil {
			return err
		}
		k := r.Len
		switch gb := e.GrainBytes(); {
		case r.State == vmdk.Allocated:
			if err := e.ShareFile(src, from, r.Offset, k); err != nil {
				return err
			}
		case (from|off-e.Start|n)%pageSize != 0 || (off-e.Start)%gb != 0:
			return fault.New(fault.Unsupported, "", "extent %s: a grain cannot be shared in part", e.Name)
		default:
			if _, err := c.allocate(i, e, off-e.Start, k, nil); err != nil {
				return err
			}
			continue // it is allocated now
		}
		from, off, n = from+k, off+k, n-k
	}
	return nil
}

const pageSize = 4096
