package chain

import (
	"errors"
	"io"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// scanStep is how much of a link is looked at in one request.
const scanStep = 1 << 30

// Allocated is how many bytes a link holds itself: its grains, or the data of its flat files.
func (c *Chain) Allocated(link int) (int64, error) {
	var sum int64
	err := c.scan(link, func(p part) error {
		if p.state == vmdk.Allocated {
			sum += p.n
		}
		return nil
	})
	return sum, err
}

// MergeCost is how many bytes a merge of the links lower and lower+1 would copy in each direction.
func (c *Chain) MergeCost(lower int) (down, up int64, err error) {
	if err := c.checkBoundary(lower); err != nil {
		return 0, 0, err
	}
	if down, err = c.Allocated(lower + 1); err != nil {
		return 0, 0, err
	}
	err = c.scan(lower+1, func(p part) error {
		if p.state != vmdk.Unallocated {
			return nil
		}
		return c.parts(lower, p.off, p.n, func(q part) error {
			if q.state == vmdk.Allocated {
				up += q.n
			}
			return nil
		})
	})
	return down, up, err
}

func (c *Chain) checkBoundary(lower int) error {
	if n := len(c.Links()); lower < 0 || lower+1 >= n {
		return fault.New(fault.Invalid, "", "there is no link above link %d of %d", lower, n)
	}
	return nil
}

// part is a piece of the disk of which one link knows one thing.
type part struct {
	off, n int64 // bytes of the disk
	state  vmdk.State
}

// scan calls do, inside a request, for each part of a link.
func (c *Chain) scan(link int, do func(part) error) error {
	for off := int64(0); ; off += scanStep {
		c.gate.RLock()
		err := c.alive()
		if err == nil && (link < 0 || link >= len(c.links)) {
			err = fault.New(fault.Invalid, "", "there is no link %d", link)
		}
		if err != nil || off >= c.links[link].Size() {
			c.gate.RUnlock()
			return err
		}
		err = c.parts(link, off, scanStep, do)
		c.gate.RUnlock()
		if err != nil {
			return err
		}
	}
}

// parts calls do for each part of [off, off+n) of a link, as far as the link reaches. A hole of a flat file is
// Unallocated: a flat link is a base. Needs the gate.
func (c *Chain) parts(link int, off, n int64, do func(part) error) error {
	l := c.links[link]
	for end := min(off+n, l.Size()); off < end; {
		e := l.At(off)
		r, err := e.Run(off-e.Start, min(end, e.End())-off)
		if err != nil {
			return err
		}
		p := part{off, r.Len, r.State}
		if e.Kind == vmdk.Flat {
			flatPart(e, &p)
		}
		if err := do(p); err != nil {
			return err
		}
		off += p.n
	}
	return nil
}

// flatPart cuts a part of a flat extent to its first data or hole.
func flatPart(e *vmdk.Extent, p *part) {
	start, end, err := e.SeekData(p.off - e.Start)
	switch {
	case errors.Is(err, io.EOF):
		p.state = vmdk.Unallocated
	case err != nil: // a file system without SEEK_DATA: everything is data
	case start > p.off-e.Start:
		p.state, p.n = vmdk.Unallocated, min(p.n, start+e.Start-p.off)
	default:
		p.n = min(p.n, end+e.Start-p.off)
	}
}
