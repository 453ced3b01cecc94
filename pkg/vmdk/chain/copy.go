package chain

import (
	"bytes"
	"context"
	"errors"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// Constant but for tests.
var (
	// pieceBytes is how much is copied in one request: what a cancel waits for.
	pieceBytes int64 = 1 << 20
	// commitEvery is after how many copied bytes the merge commits: what a crash makes it repeat, and how much of a
	// drained link takes space twice.
	commitEvery int64 = 64 << 20
)

// resume is how far a merge down from an upper link that does not change has come, while the chain stays open.
type resume struct {
	lower, upper string
	off          int64
}

// copyAll is step 2 of Merge. It passes once over the upper link. Behind it nothing comes back: a drained head gets no
// grains, and a grain that was pulled up keeps its place, or lost it because all that is below it are zeros.
func (c *Chain) copyAll(ctx context.Context, m *merging, p MergeParams) error {
	total, up, err := c.MergeCost(m.lower)
	if err != nil {
		return err
	}
	if m.dir == Up {
		total = up
	}
	var off, done, since int64
	here := resume{lower: c.links[m.lower].Name, upper: c.links[m.lower+1].Name}
	if c.resumeAt.lower == here.lower && c.resumeAt.upper == here.upper && m.dir == Down && !m.head {
		off = c.resumeAt.off
	}
	for size := c.links[m.lower+1].Size(); off < size; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		piece, err := c.findPiece(m, off)
		if err != nil {
			return err
		}
		if piece.n > 0 {
			if p.Pace != nil {
				if err := p.Pace(ctx, piece.n); err != nil {
					return err
				}
			}
			if err := c.copyPiece(m, piece); err != nil {
				return err
			}
			done, since = done+piece.n, since+piece.n
			if p.Progress != nil {
				p.Progress(min(done, total), total)
			}
		}
		if off = piece.off + piece.n; piece.n == 0 {
			off = piece.off
		}
		if since >= commitEvery {
			if err := c.commitBoth(); err != nil {
				return err
			}
			since = 0
		}
		if m.dir == Down && !m.head {
			here.off = off
			c.resumeAt = here
		}
	}
	return nil
}

// errFound ends a search.
var errFound = errors.New("found")

// findPiece is the first piece at or behind off that has to be copied, whole grains of one extent of the upper link. If
// there is none near, its length is 0 and the search goes on at its offset.
func (c *Chain) findPiece(m *merging, off int64) (part, error) {
	c.gate.RLock()
	defer c.gate.RUnlock()
	if err := c.alive(); err != nil {
		return part{}, err
	}
	var found part
	err := c.parts(m.lower+1, off, scanStep, func(p part) error {
		if m.dir == Down {
			if p.state != vmdk.Unallocated {
				found = p
				return errFound
			}
			return nil
		}
		if p.state != vmdk.Unallocated {
			return nil
		}
		return c.parts(m.lower, p.off, p.n, func(q part) error {
			if q.state != vmdk.Unallocated {
				found = q
				return errFound
			}
			return nil
		})
	})
	switch {
	case err == nil:
		return part{off: min(off+scanStep, c.links[m.lower+1].Size())}, nil
	case !errors.Is(err, errFound):
		return part{}, err
	}
	e := c.links[m.lower+1].At(found.off)
	gb := e.GrainBytes()
	from := (found.off - e.Start) / gb * gb
	to := min((found.off+min(found.n, max(pieceBytes, gb))-e.Start+gb-1)/gb*gb, e.Len)
	return part{e.Start + from, to - from, found.state}, nil
}

// copyPiece copies what findPiece found, as a request of its own. What has changed meanwhile is looked at again.
func (c *Chain) copyPiece(m *merging, p part) error {
	c.gate.RLock()
	defer c.gate.RUnlock()
	if err := c.alive(); err != nil {
		return err
	}
	switch {
	case m.dir == Up:
		return c.pull(m, p.off, p.n)
	case m.head:
		return c.drain(p.off, p.n)
	}
	return c.push(m, p.off, p.n)
}

// push copies what an upper link that nobody writes has in [off, off+n) into the lower one. Readers find the upper one's
// grains first, so they never see the lower one change.
func (c *Chain) push(m *merging, off, n int64) error {
	buf := make([]byte, n)
	return c.parts(m.lower+1, off, n, func(p part) error {
		switch p.state {
		case vmdk.Unallocated:
			return nil
		case vmdk.Zeroed:
			return c.zeroBelow(m.lower, p.off, p.n)
		}
		e := c.links[m.lower+1].At(p.off)
		r, err := e.Run(p.off-e.Start, p.n)
		if err != nil {
			return err
		}
		if c.sharesBelow(m.lower, e, r, p) {
			return nil
		}
		if err := e.ReadRun(buf[:p.n], p.off-e.Start, r); err != nil {
			return err
		}
		return c.putBelow(m.lower, buf[:p.n], p.off, e.GrainBytes())
	})
}

// sharesBelow lets the lower link share what the upper one has, where the file system can: no data is copied. Readers find the upper
// one's grains first, so that a grain may be there before it has its content.
func (c *Chain) sharesBelow(i int, e *vmdk.Extent, r vmdk.Run, p part) bool {
	if c.unshared.Load() || r.Packed || (r.Offset|p.off|p.n)%pageSize != 0 {
		return false
	}
	err := c.shareInto(i, e, r.Offset, p.off, p.n)
	if fault.KindOf(err) == fault.Unsupported {
		c.unshared.Store(true) // most file systems: not asked again
	}
	return err == nil // any other failure is the copy's to meet
}

// putBelow makes b the content at off of link i, as if it were the head: grains of zeros as zeros, others written, but
// where they are there already, because an earlier merge was cut off.
func (c *Chain) putBelow(i int, b []byte, off, grain int64) error {
	for len(b) > 0 {
		n := min(grain, int64(len(b)))
		zero := isZero(b[:n])
		for n < int64(len(b)) && isZero(b[n:min(n+grain, int64(len(b)))]) == zero {
			n = min(n+grain, int64(len(b)))
		}
		var err error
		if zero {
			err = c.zeroBelow(i, off, n)
		} else if !c.hasAlready(i, b[:n], off) {
			_, err = c.writeLink(i, b[:n], off)
		}
		if err != nil {
			return err
		}
		b, off = b[n:], off+n
	}
	return nil
}

// hasAlready tells that one run of link i has b at off.
func (c *Chain) hasAlready(i int, b []byte, off int64) bool {
	e := c.links[i].At(off)
	if e.Kind != vmdk.Sparse || off+int64(len(b)) > e.End() {
		return false
	}
	r, err := e.Run(off-e.Start, int64(len(b)))
	if err != nil || r.State != vmdk.Allocated || r.Len < int64(len(b)) {
		return false
	}
	have := make([]byte, len(b))
	return e.ReadFile(have, r.Offset) == nil && bytes.Equal(have, b)
}

// zeroBelow makes a range of link i zeros, with the space given back where the file system can.
func (c *Chain) zeroBelow(i int, off, n int64) error {
	err := c.zeroLink(i, off, n, true)
	if fault.KindOf(err) == fault.Unsupported {
		err = c.zeroLink(i, off, n, false)
	}
	return err
}

// pull copies into the upper link what it lacks in [off, off+n) and the lower one, or what is below it, has. The lower
// one is not written. A grain that a request fills meanwhile is left alone.
func (c *Chain) pull(m *merging, off, n int64) error {
	e := c.links[m.target].At(off)
	gb, in := e.GrainBytes(), off-e.Start
	buf := make([]byte, n)
	if err := c.read(m.lower, buf, off); err != nil {
		return err
	}
	if err := c.beginExtent(e); err != nil {
		return err
	}
	for at := int64(0); at < n; {
		k := min(gb, n-at)
		zero := isZero(buf[at : at+k])
		for at+k < n && isZero(buf[at+k:min(at+k+gb, n)]) == zero {
			k = min(k+gb, n-at)
		}
		var err error
		switch {
		case !zero:
			err = c.pullRun(m, e, in+at, buf[at:at+k], k)
		default: // what is below the lower link may be something else
			var known bool
			var length int64
			if known, length, err = c.zeroRun(m.lower-1, off+at, k); err == nil && (!known || length < k) {
				err = c.pullRun(m, e, in+at, nil, k)
			}
		}
		if err != nil {
			return err
		}
		at += k
	}
	return nil
}

// pullRun stores whole grains, b or zeros, where the upper link has none.
func (c *Chain) pullRun(m *merging, e *vmdk.Extent, in int64, b []byte, n int64) error {
	for n > 0 {
		r, err := e.Run(in, n)
		if err != nil {
			return err
		}
		k := r.Len
		if r.State == vmdk.Unallocated {
			if k, err = c.allocate(m.target, e, in, r.Len, b); err != nil {
				return err
			}
		}
		if in, n = in+k, n-k; b != nil {
			b = b[k:]
		}
	}
	return nil
}
