package chain

import (
	"errors"
	"io"
	"iter"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// Extent is a piece of the disk of one nature, as `qemu-img map --output=json` shows it.
type Extent struct {
	Start  int64 `json:"start"`  // bytes of the disk
	Length int64 `json:"length"` // bytes
	// Link is the index of the link that decides, base 0; Depth counts from the head, as qemu does. For a piece that no
	// link knows it is the base, or the deepest link long enough to reach it.
	Link  int `json:"link"`
	Depth int `json:"depth"`
	// Present: a link knows the piece. Otherwise it reads as zeros.
	Present bool `json:"present"`
	// Zero: it is known to be zeros without reading.
	Zero bool `json:"zero"`
	// Data: a file has the bytes. A hole of a flat file is Zero and Data, as in qemu.
	Data bool `json:"data"`
	// File and Offset are where; File is "" if nowhere, or if the data is compressed.
	File   string `json:"file,omitempty"`
	Offset int64  `json:"offset,omitempty"`
}

// follows tells that b continues a, so that both are one piece.
func (a *Extent) follows(b Extent) bool {
	return a.Link == b.Link && a.Present == b.Present && a.Zero == b.Zero && a.Data == b.Data && a.File == b.File &&
		(a.File == "" || a.Offset+a.Length == b.Offset)
}

// Map describes [off, off+n) in order, in pieces as large as possible. Each step is a request of its own: while the disk
// is written, the pieces are of different moments.
func (c *Chain) Map(off, n int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		var cur Extent
		for n > 0 {
			x, err := c.mapOnce(off, n)
			if err != nil {
				yield(Extent{}, err)
				return
			}
			off, n = off+x.Length, n-x.Length
			switch {
			case cur.Length == 0:
				cur = x
			case cur.follows(x):
				cur.Length += x.Length
			default:
				if !yield(cur, nil) {
					return
				}
				cur = x
			}
		}
		if cur.Length > 0 {
			yield(cur, nil)
		}
	}
}

func (c *Chain) mapOnce(off, n int64) (Extent, error) {
	if err := c.enter(off, n); err != nil {
		return Extent{}, err
	}
	defer c.leave()
	for i := len(c.links) - 1; ; i-- {
		l := c.links[i]
		x := Extent{Start: off, Length: n, Link: i, Depth: len(c.links) - 1 - i, Zero: true}
		if off >= l.Size() { // shorter than its child: qemu ascribes the zeros to the link it ends in
			return x, nil
		}
		n = min(n, l.Size()-off)
		e := l.At(off)
		r, err := e.Run(off-e.Start, min(n, e.End()-off))
		if err != nil {
			return Extent{}, err
		}
		n = r.Len
		x.Length = n
		switch {
		case r.State == vmdk.Zeroed:
			x.Present = true
			return x, nil
		case r.State == vmdk.Allocated:
			x.Present, x.Zero, x.Data, x.File, x.Offset = true, false, true, e.Name, r.Offset
			if r.Packed {
				x.File, x.Offset = "", 0
			}
			if e.Kind == vmdk.Flat {
				err = mapFlat(&x, e, off-e.Start)
			}
			return x, err
		case i == 0:
			return x, nil
		}
	}
}

// mapFlat cuts x to its first data or hole.
func mapFlat(x *Extent, e *vmdk.Extent, off int64) error {
	start, end, err := e.SeekData(off)
	switch {
	case errors.Is(err, io.EOF):
		x.Zero = true
	case err != nil:
		return nil //nolint:nilerr // a file system without SEEK_DATA: everything is data
	case start > off:
		x.Zero = true
		x.Length = min(x.Length, start-off)
	default:
		x.Length = min(x.Length, end-off)
	}
	return nil
}
