package chain

import (
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// reclaimAt is how many runs of freed grains make it worth to stop all requests for a moment.
const reclaimAt = 16

// commit is one execution of the commit protocol, which any number of flushes wait for.
type commit struct {
	done chan struct{}
	err  error
}

// Flush implements block.Device.
func (c *Chain) Flush() error {
	c.gate.RLock()
	err := c.alive()
	if err == nil && !c.o.ReadOnly {
		err = c.commit()
	}
	c.gate.RUnlock()
	if err == nil && !c.o.ReadOnly {
		c.reclaim()
	}
	return err
}

// commit makes every change that was acknowledged before the call durable. Callers that come while one commit runs share
// the next one; the first of them runs it.
func (c *Chain) commit() error {
	c.flushMu.Lock()
	if c.running == nil {
		c.running = &commit{done: make(chan struct{})}
		me := c.running
		c.flushMu.Unlock()
		return c.run(me)
	}
	if c.next != nil {
		me := c.next
		c.flushMu.Unlock()
		<-me.done
		return me.err
	}
	c.next = &commit{done: make(chan struct{})}
	me, before := c.next, c.running
	c.flushMu.Unlock()
	<-before.done
	c.flushMu.Lock()
	c.running, c.next = me, nil
	c.flushMu.Unlock()
	return c.run(me)
}

func (c *Chain) run(me *commit) error {
	if p := c.poison.Load(); p != nil {
		me.err = p
	} else if err := c.commitOnce(); err != nil {
		me.err = c.fail(err)
	}
	c.flushMu.Lock()
	if c.next == nil {
		c.running = nil
	}
	c.flushMu.Unlock()
	close(me.done)
	return me.err
}

// commitOnce is the flush protocol.
//  1. Freeze: with publishing kept out, mark Pending and copy the changed table sectors. Whatever they name is written.
//  2. Sync the data. [A crash until here loses unflushed writes only.]
//  3. Write the redundant tables, then the tables; see store. [A crash leaves some entries in one copy; all name durable grains.]
//  4. Sync. [From here on everything frozen is durable.]
//  5. Retire the marked entries of Pending; settle freed grains. [Death before this: applying them again changes nothing.]
func (c *Chain) commitOnce() error {
	c.commitMu.Lock()
	var mark uint64
	if c.o.Pending != nil {
		mark = c.o.Pending.Mark()
	}
	links := c.liveLinks()
	frozen := freeze(links)
	c.commitMu.Unlock()
	if err := store(links, frozen); err != nil {
		return err
	}
	if c.o.Pending != nil {
		c.o.Pending.Retire(mark)
	}
	return nil
}

// freeze takes the changes of each link.
func freeze(links []*vmdk.Link) [][]*vmdk.Frozen {
	frozen := make([][]*vmdk.Frozen, len(links))
	for i, l := range links {
		for _, e := range l.Extents() {
			if f := e.Freeze(); f != nil {
				frozen[i] = append(frozen[i], f)
			}
		}
	}
	return frozen
}

// store is steps 2 to 4 of the protocol. With two links, the tables of the lower one are durable before any of the upper
// one are written: a grain that was moved down must not be gone above while it is missing below.
func store(links []*vmdk.Link, frozen [][]*vmdk.Frozen) error {
	for _, l := range links {
		for _, e := range l.Extents() {
			if err := e.SyncData(); err != nil {
				return err
			}
		}
	}
	for _, fs := range frozen {
		for _, f := range fs {
			if err := f.WriteTables(); err != nil {
				return err
			}
		}
		for _, f := range fs {
			if err := f.SyncTables(); err != nil {
				return err
			}
		}
	}
	for _, fs := range frozen {
		for _, f := range fs {
			f.Thaw()
		}
	}
	return nil
}

// liveLinks are the links that requests change, lower first; needs the gate.
func (c *Chain) liveLinks() []*vmdk.Link {
	if c.draining() {
		return c.links[len(c.links)-2:]
	}
	return c.links[len(c.links)-1:]
}

// live tells that requests change link i; needs the gate.
func (c *Chain) live(i int) bool { return i >= len(c.links)-len(c.liveLinks()) }

// reclaim brings freed grains back into use: their change is durable; when no request is under way that began before,
// nobody reads or writes them any more. What cannot be punched stays unused until the disk is checked; that is no reason
// to fail a flush.
func (c *Chain) reclaim() {
	type full struct {
		link   *vmdk.Link
		extent *vmdk.Extent
	}
	var found []full
	c.gate.RLock() // a growth adds extents
	for _, l := range c.liveLinks() {
		for _, e := range l.Extents() {
			if e.Settled() >= reclaimAt {
				found = append(found, full{l, e})
			}
		}
	}
	c.gate.RUnlock()
	for _, f := range found {
		c.gate.Lock()
		var runs []vmdk.GrainRun
		if c.alive() == nil && c.written(f.link) {
			runs = f.extent.Settle()
		}
		c.gate.Unlock()
		// The disk may be closed from here on, or the link be a parent, so punching is a request of its own.
		c.gate.RLock()
		if c.alive() == nil && c.written(f.link) && len(runs) > 0 {
			_ = f.extent.Reclaim(runs)
		}
		c.gate.RUnlock()
	}
}

// written tells that l is still one of the links that requests change; needs the gate.
func (c *Chain) written(l *vmdk.Link) bool { return slices.Contains(c.liveLinks(), l) }

// reclaimAll gives the space of all freed grains back; needs the gate.
func (c *Chain) reclaimAll() {
	for _, e := range c.head.Extents() {
		if e.Settled() > 0 {
			_ = e.Reclaim(e.Settle())
		}
	}
}
