package chain

import (
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
//  3. Write the redundant tables, then the tables. [A crash leaves some entries in one copy; all name durable grains.]
//  4. Sync. [From here on everything frozen is durable.]
//  5. Retire the marked entries of Pending; settle freed grains. [Death before this: applying them again changes nothing.]
func (c *Chain) commitOnce() error {
	c.commitMu.Lock()
	var mark uint64
	if c.o.Pending != nil {
		mark = c.o.Pending.Mark()
	}
	var frozen []*vmdk.Frozen
	for _, e := range c.head.Extents() {
		if f := e.Freeze(); f != nil {
			frozen = append(frozen, f)
		}
	}
	c.commitMu.Unlock()
	for _, e := range c.head.Extents() {
		if err := e.SyncData(); err != nil {
			return err
		}
	}
	for _, f := range frozen {
		if err := f.WriteTables(); err != nil {
			return err
		}
	}
	for _, f := range frozen {
		if err := f.SyncTables(); err != nil {
			return err
		}
	}
	for _, f := range frozen {
		f.Thaw()
	}
	if c.o.Pending != nil {
		c.o.Pending.Retire(mark)
	}
	return nil
}

// reclaim brings freed grains back into use: their change is durable; when no request is under way that began before,
// nobody reads or writes them any more. What cannot be punched stays unused until the disk is checked; that is no reason
// to fail a flush.
func (c *Chain) reclaim() {
	c.gate.RLock()
	extents := c.head.Extents()
	c.gate.RUnlock()
	for _, e := range extents {
		if e.Settled() < reclaimAt {
			continue
		}
		c.gate.Lock()
		if c.alive() != nil {
			c.gate.Unlock()
			return
		}
		runs := e.Settle()
		c.gate.Unlock()
		// The disk may be closed from here on, so punching is a request of its own.
		c.gate.RLock()
		if c.alive() == nil {
			_ = e.Reclaim(runs)
		}
		c.gate.RUnlock()
	}
}

// reclaimAll gives the space of all freed grains back; needs the gate.
func (c *Chain) reclaimAll() {
	for _, e := range c.head.Extents() {
		if e.Settled() > 0 {
			_ = e.Reclaim(e.Settle())
		}
	}
}
