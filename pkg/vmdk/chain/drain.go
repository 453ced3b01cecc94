package chain

import (
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// While the head is drained into the link below it, both are written. A grain that the head has stays there, and requests
// change it in place, until the merge moves it; one that it lacks belongs to the lower link, which requests write as if it
// were the head. So the head only shrinks. Whoever changes a grain, or moves it, holds its stripe of the head; readers hold
// none: a grain appears below before it is gone above, and its place above is not reused while they read.

// inDrain calls upper for the parts of [off, off+n) that the head has, and lower for the others, in order, with the
// head's grains locked. File offsets are those of the extent e of the head.
func (c *Chain) inDrain(off, n int64, upper func(e *vmdk.Extent, at, fileOff, n int64) error, lower func(at, n int64) error) error {
	for n > 0 {
		e := c.head.At(off)
		gb, in := e.GrainBytes(), off-e.Start
		k := min(n, e.End()-off, (in/gb+runGrains(e, in/gb))*gb-in)
		if err := c.inDrainGrains(e, in, k, upper, lower); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

func (c *Chain) inDrainGrains(e *vmdk.Extent, in, n int64, upper func(e *vmdk.Extent, at, fileOff, n int64) error, lower func(at, n int64) error) error {
	gb := e.GrainBytes()
	defer c.lockGrains(len(c.links)-1, e, in/gb, (in+n-1)/gb-in/gb+1)()
	for n > 0 {
		r, err := e.Run(in, n)
		if err != nil {
			return err
		}
		k := r.Len
		switch r.State {
		case vmdk.Allocated:
			err = upper(e, e.Start+in, r.Offset, k)
		case vmdk.Zeroed: // moved first, as a whole
			from, to := in/gb*gb, min((in+k+gb-1)/gb*gb, e.Len)
			k, err = 0, c.moveZeroed(e, from, to-from)
		default:
			err = lower(e.Start+in, k)
		}
		if err != nil {
			return err
		}
		in, n = in+k, n-k
	}
	return nil
}

func (c *Chain) writeDraining(p []byte, off int64) (int, error) {
	done := int64(0)
	err := c.inDrain(off, int64(len(p)), func(e *vmdk.Extent, _, fileOff, n int64) error {
		err := c.beginExtent(e)
		if err == nil {
			err = e.WriteFile(p[done:done+n], fileOff)
		}
		if err == nil {
			done += n
		}
		return err
	}, func(at, n int64) error {
		k, err := c.writeLink(len(c.links)-2, p[done:done+n], at)
		done += int64(k)
		return err
	})
	return int(done), err
}

func (c *Chain) zeroDraining(off, n int64, discard bool) error {
	return c.inDrain(off, n, func(e *vmdk.Extent, at, fileOff, n int64) error {
		if discard && e.Solid() {
			return fault.New(fault.Unsupported, "", "the file system of extent %s cannot punch holes", e.Name)
		}
		err := c.beginExtent(e)
		if err == nil {
			err = e.ZeroFile(fileOff, n, discard)
		}
		return fault.Wrap(err, "zero %d bytes at %d", n, at)
	}, func(at, n int64) error { return c.zeroLink(len(c.links)-2, at, n, discard) })
}

// drain moves the grains of [off, off+n) that the head has to the link below. The range is whole grains.
//
// Protocol, for each run of grains, under their stripes: 1. write the content below, as a request would; [death until 2:
// the head still has the grains, and its content is what counts] 2. the entries of the head become 0, in Pending and in
// memory, and their places are freed. A flush makes 1 durable before 2.
func (c *Chain) drain(off, n int64) error {
	buf := make([]byte, n)
	return c.inDrain(off, n, func(e *vmdk.Extent, at, fileOff, n int64) error {
		b := buf[:n]
		if err := e.ReadFile(b, fileOff); err != nil {
			return err
		}
		if err := c.putBelow(len(c.links)-2, b, at, e.GrainBytes()); err != nil {
			return err
		}
		return c.dropGrains(e, at-e.Start, n)
	}, func(int64, int64) error { return nil })
}

// moveZeroed moves whole grains that the head has as zeros.
func (c *Chain) moveZeroed(e *vmdk.Extent, in, n int64) error {
	if err := c.zeroBelow(len(c.links)-2, e.Start+in, n); err != nil {
		return err
	}
	return c.dropGrains(e, in, n)
}

// dropGrains makes the entries of the grains at [in, in+n) of an extent of the head 0; their stripes are held.
func (c *Chain) dropGrains(e *vmdk.Extent, in, n int64) error {
	if err := c.beginExtent(e); err != nil {
		return err
	}
	gb := e.GrainBytes()
	return c.publish(len(c.links)-1, e, in/gb, (n+gb-1)/gb, 0)
}
