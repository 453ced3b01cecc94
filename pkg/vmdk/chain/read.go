package chain

import (
	"errors"
	"io"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// ReadAt implements block.Device.
func (c *Chain) ReadAt(p []byte, off int64) (int, error) {
	if err := c.enter(off, int64(len(p))); err != nil {
		return 0, err
	}
	defer c.leave()
	if err := c.read(len(c.links)-1, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// read fills p from link i and what is below it. Below the base, and behind the end of a link, there are zeros.
func (c *Chain) read(i int, p []byte, off int64) error {
	if i < 0 {
		clear(p)
		return nil
	}
	l := c.links[i]
	if n := max(l.Size()-off, 0); n < int64(len(p)) {
		clear(p[n:])
		p = p[:n]
	}
	for len(p) > 0 {
		e := l.At(off)
		r, err := e.Run(off-e.Start, min(int64(len(p)), e.End()-off))
		if err != nil {
			return err
		}
		switch r.State {
		case vmdk.Allocated:
			err = e.ReadRun(p[:r.Len], off-e.Start, r)
		case vmdk.Zeroed:
			clear(p[:r.Len])
		default:
			err = c.read(i-1, p[:r.Len], off)
		}
		if err != nil {
			return err
		}
		p, off = p[r.Len:], off+r.Len
	}
	return nil
}

// zeroRun tells whether [off, off+n) at link i and below begins with a piece that is known to be zeros without reading
// it, or with one that is not, and how long that piece is.
func (c *Chain) zeroRun(i int, off, n int64) (zero bool, length int64, err error) {
	if i < 0 {
		return true, n, nil
	}
	l := c.links[i]
	if off >= l.Size() {
		return true, n, nil
	}
	e := l.At(off)
	r, err := e.Run(off-e.Start, min(n, e.End()-off))
	if err != nil {
		return false, 0, err
	}
	switch {
	case r.State == vmdk.Zeroed:
		return true, r.Len, nil
	case r.State == vmdk.Unallocated:
		return c.zeroRun(i-1, off, r.Len)
	case e.Kind == vmdk.Flat:
		return flatZeroRun(e, off-e.Start, r.Len)
	}
	return false, r.Len, nil
}

// flatZeroRun: the holes of a flat file are zeros.
func flatZeroRun(e *vmdk.Extent, off, n int64) (bool, int64, error) {
	start, end, err := e.SeekData(off)
	switch {
	case errors.Is(err, io.EOF):
		return true, n, nil
	case err != nil:
		return false, n, nil //nolint:nilerr // a file system without SEEK_DATA: everything may be data
	case start > off:
		return true, min(n, start-off), nil
	}
	return false, min(n, end-off), nil
}
