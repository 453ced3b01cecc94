package chain

import (
	"errors"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

const (
	// maxRun is how many stripes are held in one step; far fewer than there are, so a run never needs one twice.
	maxRun = 64
	// stripeBytes is what one stripe stands for, or one grain if that is larger.
	stripeBytes = 64 << 10
)

// stripeGrains is how many grains one stripe stands for.
func stripeGrains(e *vmdk.Extent) int64 { return max(stripeBytes/e.GrainBytes(), 1) }

// runGrains is how many grains from g on can get their place, or lose it, in one step.
func runGrains(e *vmdk.Extent, g int64) int64 {
	per := stripeGrains(e)
	return maxRun*per - g%per
}

// WriteAt implements block.Device.
func (c *Chain) WriteAt(p []byte, off int64) (int, error) {
	if err := c.enterWrite(off, int64(len(p))); err != nil {
		return 0, err
	}
	defer c.leave()
	if c.draining() {
		return c.writeDraining(p, off)
	}
	return c.writeLink(len(c.links)-1, p, off)
}

// writeLink writes to link i as if it were the head: what a new grain leaves open comes from the links below.
func (c *Chain) writeLink(i int, p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		at := off + int64(done)
		e := c.links[i].At(at)
		n := min(int64(len(p)-done), e.End()-at)
		if err := c.writeExtent(i, e, p[done:done+int(n)], at-e.Start); err != nil {
			return done, err
		}
		done += int(n)
	}
	return len(p), nil
}

// enterWrite is enter for a request that changes the disk; the first one of this open records that, durably.
func (c *Chain) enterWrite(off, n int64) error {
	if err := c.enter(off, n); err != nil {
		return err
	}
	if err := c.begin(); err != nil {
		c.leave()
		return err
	}
	return nil
}

func (c *Chain) begin() error {
	if c.started.Load() {
		return nil
	}
	if c.o.ReadOnly {
		return fault.New(fault.ReadOnly, "open it for writing", "disk %s is open read-only", c.head.Name)
	}
	c.startMu.Lock()
	defer c.startMu.Unlock()
	if c.started.Load() {
		return nil
	}
	if err := c.head.Begin(); err != nil {
		return c.beginFailed(err)
	}
	c.started.Store(true)
	return nil
}

// beginExtent marks an extent unclean before its first change.
func (c *Chain) beginExtent(e *vmdk.Extent) error {
	if err := e.Begin(); err != nil {
		return c.beginFailed(err)
	}
	return nil
}

// beginFailed: a full datastore is the guest's ENOSPC, and the next request tries again; anything else is a failed sync
// as far as anybody can tell.
func (c *Chain) beginFailed(err error) error {
	if k := fault.KindOf(err); k == fault.NoSpace || k == fault.ReadOnly || k == fault.Exhausted {
		return err
	}
	return c.fail(err)
}

// writeExtent writes p at byte off of an extent of link i.
func (c *Chain) writeExtent(i int, e *vmdk.Extent, p []byte, off int64) error {
	if err := e.WriteErr(); err != nil {
		return err
	}
	if err := c.beginExtent(e); err != nil {
		return err
	}
	for len(p) > 0 {
		r, err := e.Run(off, int64(len(p)))
		if err != nil {
			return err
		}
		n := r.Len
		if r.State == vmdk.Allocated {
			err = e.WriteFile(p[:n], r.Offset)
		} else {
			n, err = c.allocate(i, e, off, n, p)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// lockGrains takes the stripes of count grains of a link from g on, in ascending order of stripes. The head has its own
// stripes, taken before those of a link below.
func (c *Chain) lockGrains(link int, e *vmdk.Extent, g, count int64) (unlock func()) {
	stripes := &c.stripes
	if link < len(c.links)-1 {
		stripes = &c.lowerStripes
	}
	var idx [maxRun]int
	s := idx[:0]
	per := stripeGrains(e)
	for i := g / per; i <= (g+count-1)/per; i++ {
		s = append(s, int((i+int64(e.Index)*67)%int64(len(stripes))))
	}
	slices.Sort(s)
	for _, i := range s {
		stripes[i].Lock()
	}
	return func() {
		for _, i := range s {
			stripes[i].Unlock()
		}
	}
}

// allocate stores the start of p at [off, off+n) of an extent of link i, where no grains were a moment ago, and returns how much it
// stored: 0 if somebody else was faster. p nil stands for zeros, for which nothing is written: new grains are zeros.
//
// Protocol: 1. lock the grains, look again; 2. take places in the file; 3. write data and what it leaves open from the
// parent; 4. append to Pending and set the tables in memory. [Death before 4 leaks the places, and the write was not
// answered. Death after 4: Pending has it.]
func (c *Chain) allocate(i int, e *vmdk.Extent, off, n int64, p []byte) (int64, error) {
	gb := e.GrainBytes()
	g := off / gb
	count := min((off+n-1)/gb-g+1, runGrains(e, g))
	defer c.lockGrains(i, e, g, count)()
	r, err := e.Run(off, min(n, (g+count)*gb-off))
	if err != nil || r.State == vmdk.Allocated {
		return 0, err
	}
	n = r.Len
	count = (off+n-1)/gb - g + 1
	sector, got, err := e.Alloc(count)
	if err != nil {
		return 0, err
	}
	n = min(n, (g+got)*gb-off)
	if err := c.fillGrains(i, e, r.State, off, n, p, sector*vmdk.SectorSize); err != nil {
		e.Free(sector, got) // part may be written: it is zeroed before anybody gets it
		return 0, err
	}
	return n, c.publish(i, e, g, got, uint32(sector))
}

// fillGrains writes the new grains that hold [off, off+n) of an extent, in the file from byte at on: p, and before and
// behind it what the parents have.
func (c *Chain) fillGrains(i int, e *vmdk.Extent, state vmdk.State, off, n int64, p []byte, at int64) error {
	gb := e.GrainBytes()
	begin := off / gb * gb
	end := min((off+n+gb-1)/gb*gb, e.Len)
	head, tail := off-begin, end-off-n
	var buf []byte
	if state == vmdk.Unallocated && i > 0 && head+tail > 0 {
		var err error
		if buf, head, tail, err = c.parentEdges(i-1, e, off, n, head, tail); err != nil {
			return err
		}
	} else {
		head, tail = 0, 0
	}
	if p == nil && head+tail == 0 {
		return nil
	}
	start := at + off - begin
	if head+tail == 0 {
		return e.WriteFile(p[:n], start)
	}
	// One write for all: a copy in memory is cheaper than another request.
	all := make([]byte, head+n+tail)
	copy(all, buf[:head])
	copy(all[head:], p[:min(n, int64(len(p)))])
	copy(all[head+n:], buf[head:])
	return e.WriteFile(all, start-head)
}

// parentEdges reads what a write leaves open of its first and last grain. An edge of zeros is left out: new grains are
// zeros.
func (c *Chain) parentEdges(below int, e *vmdk.Extent, off, n, head, tail int64) ([]byte, int64, int64, error) {
	buf := make([]byte, head+tail)
	if err := c.read(below, buf[:head], e.Start+off-head); err != nil {
		return nil, 0, 0, err
	}
	if err := c.read(below, buf[head:], e.Start+off+n); err != nil {
		return nil, 0, 0, err
	}
	if isZero(buf[head:]) {
		buf, tail = buf[:head], 0
	}
	if isZero(buf[:head]) {
		buf, head = buf[head:], 0
	}
	return buf, head, tail, nil
}

func isZero(b []byte) bool {
	for len(b) >= 8 {
		if b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7] != 0 {
			return false
		}
		b = b[8:]
	}
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// publish makes count grains of link i from g on known: to Pending first, then in the tables, both inside commitMu so that no
// flush retires an entry without having the table change. A full Pending forces a commit.
func (c *Chain) publish(i int, e *vmdk.Extent, g, count int64, sector uint32) error {
	if err := e.Prepare(g, count); err != nil {
		if fault.KindOf(err) == fault.NoSpace {
			if sector > 1 {
				e.Free(int64(sector), count)
			}
			return err
		}
		return c.fail(err)
	}
	for count > 0 {
		n := min(count, maxRun)
		for {
			err := c.tryPublish(i, e, g, n, sector)
			if err == nil {
				break
			}
			if !errors.Is(err, ErrPendingFull) {
				return err
			}
			if err := c.commit(); err != nil {
				return err
			}
			n = max(n/2, 1) // a table smaller than the run takes it in pieces
		}
		g, count = g+n, count-n
		if sector > 1 {
			sector += uint32(n * e.GrainBytes() / vmdk.SectorSize)
		}
	}
	if e.DirtyTables() > vmdk.MaxDirtyTables { // this bounds the memory of a guest that never flushes
		if !c.live(i) {
			return c.commitTarget()
		}
		return c.commit()
	}
	return nil
}

func (c *Chain) tryPublish(link int, e *vmdk.Extent, g, n int64, sector uint32) error {
	c.commitMu.RLock()
	defer c.commitMu.RUnlock()
	if c.o.Pending != nil && c.live(link) {
		var buf [maxRun]PendingEntry
		entries := buf[:0]
		for i := range n {
			p := PendingEntry{Extent: uint16(e.Index), Link: uint16(link), Sector: sector, Grain: uint64(g + i)}
			if sector > 1 {
				p.Sector += uint32(i * e.GrainBytes() / vmdk.SectorSize)
			}
			entries = append(entries, p)
		}
		if err := c.o.Pending.Append(entries...); err != nil {
			return err
		}
	}
	// A grain that loses its place is freed inside the same moment, so that the flush that makes the change durable
	// also settles the place.
	for i := int64(0); sector <= 1 && i < n; i++ {
		old, err := e.Entry(g + i)
		if err != nil {
			return c.fail(err)
		}
		if old > 1 {
			e.Free(int64(old), 1)
		}
	}
	if err := e.Set(g, n, sector); err != nil {
		return c.fail(err) // Pending has it, memory has not: only a reopen brings them together
	}
	return nil
}
