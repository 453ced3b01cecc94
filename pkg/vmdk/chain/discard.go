package chain

import (
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// Discard implements block.Device. On a base, whole grains lose their place; in a child, where a missing grain would show
// the parent, they keep it and become a hole of the file: readable for every program, and as small. Kinds: Unsupported (the
// file system cannot punch; some of the range may read as zeros already).
func (c *Chain) Discard(off, n int64) error { return c.zero(off, n, true) }

// WriteZeroes implements block.Device. Allocated grains keep their place.
func (c *Chain) WriteZeroes(off, n int64) error { return c.zero(off, n, false) }

func (c *Chain) zero(off, n int64, discard bool) error {
	if err := c.enterWrite(off, n); err != nil {
		return err
	}
	defer c.leave()
	if c.draining() {
		return c.zeroDraining(off, n, discard)
	}
	return c.zeroLink(len(c.links)-1, off, n, discard)
}

// zeroLink makes [off, off+n) of link i read as zeros, as if it were the head.
func (c *Chain) zeroLink(i int, off, n int64, discard bool) error {
	for n > 0 {
		e := c.links[i].At(off)
		k := min(n, e.End()-off)
		var err error
		switch {
		case discard && e.Solid():
			err = fault.New(fault.Unsupported, "", "the file system of extent %s cannot punch holes", e.Name)
		case e.Kind == vmdk.Zero: // zeros already, whatever may be written
		case e.WriteErr() != nil:
			err = e.WriteErr()
		case e.Kind == vmdk.Flat:
			if err = c.beginExtent(e); err == nil {
				var r vmdk.Run
				if r, err = e.Run(off-e.Start, k); err == nil {
					err = e.ZeroFile(r.Offset, r.Len, discard && !c.thick())
				}
			}
		default:
			err = c.zeroSparse(i, e, off-e.Start, k, discard)
		}
		if err != nil {
			return fault.Wrap(err, "zero %d bytes at %d", k, off)
		}
		off, n = off+k, n-k
	}
	return nil
}

// zeroSparse makes [off, off+n) of a sparse extent read as zeros.
func (c *Chain) zeroSparse(i int, e *vmdk.Extent, off, n int64, discard bool) error {
	for n > 0 {
		r, err := e.Run(off, n)
		if err != nil {
			return err
		}
		k := r.Len
		switch r.State {
		case vmdk.Zeroed:
		case vmdk.Allocated:
			k, err = c.zeroAllocated(i, e, off, r, discard)
		default:
			k, err = c.zeroUnallocated(i, e, off, r.Len)
		}
		if err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// zeroAllocated zeroes the start of a run of allocated grains and returns how much.
func (c *Chain) zeroAllocated(i int, e *vmdk.Extent, off int64, r vmdk.Run, discard bool) (int64, error) {
	if err := c.beginExtent(e); err != nil {
		return 0, err
	}
	gb := e.GrainBytes()
	whole := func(from int64) int64 { // bytes of whole grains from here on; the extent's last grain may be short
		end := off + r.Len
		if end < e.Len {
			end = end / gb * gb
		}
		return end - from
	}
	if !discard || off%gb != 0 || whole(off) <= 0 || c.keepsPlaces(i) {
		n := r.Len
		if discard && off%gb != 0 && !c.keepsPlaces(i) {
			n = min(n, gb-off%gb) // up to the next whole grain
		}
		return n, e.ZeroFile(r.Offset, n, discard)
	}
	n := min(whole(off), runGrains(e, off/gb)*gb)
	length := n
	if i > 0 {
		var zero bool
		var err error
		if zero, length, err = c.zeroRun(i-1, e.Start+off, n); err != nil {
			return 0, err
		}
		if zero && length < n {
			length = length / gb * gb
			zero = length > 0
		}
		if !zero {
			length = min(max((length+gb-1)/gb*gb, gb), n)
			return length, e.ZeroFile(r.Offset, length, true)
		}
	}
	g, count := off/gb, (length+gb-1)/gb
	defer c.lockGrains(i, e, g, count)()
	return length, c.publish(i, e, g, count, 0)
}

// zeroUnallocated makes the start of a run that shows the parent read as zeros and returns how much.
func (c *Chain) zeroUnallocated(i int, e *vmdk.Extent, off, n int64) (int64, error) {
	zero, length, err := c.zeroRun(i-1, e.Start+off, n)
	if err != nil || zero {
		return length, err
	}
	if err := c.beginExtent(e); err != nil {
		return 0, err
	}
	return c.allocate(i, e, off, length, nil)
}

func (c *Chain) thick() bool { return c.o.Format != "" && c.o.Format != vmdk.Thin }
