package chain

import (
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// reclaimAt is how many runs of freed grains make it worth to stop all requests for a moment.
const reclaimAt = 16

// commit is one execution of the commit protocol, which any number of flushes wait for.
type commit struct {
	done   chan struct{}
	err    error
	before *commit // runs before this one; nil once that is done
	frozen *frozen // what it makes durable, once nobody can join any more
}

// frozen is what a commit took of the live links.
type frozen struct {
	links  []*vmdk.Link
	tables [][]*vmdk.Frozen // of each link
	mark   uint64
	synced map[*vmdk.Extent]bool // extents whose data is durable already
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
	if me := c.joinable; me != nil {
		c.flushMu.Unlock()
		<-me.done
		return me.err
	}
	me := &commit{done: make(chan struct{}), before: c.last}
	c.last = me
	if me.before == nil {
		c.flushMu.Unlock()
		return c.run(me)
	}
	c.joinable = me
	c.flushMu.Unlock()
	<-me.before.done
	me.before = nil
	c.flushMu.Lock()
	if c.joinable == me {
		c.joinable = nil
	}
	c.flushMu.Unlock()
	return c.run(me)
}

func (c *Chain) run(me *commit) error {
	if p := c.poison.Load(); p != nil {
		me.err = p
	} else if err := c.commitOnce(me); err != nil {
		me.err = c.fail(err)
	}
	me.frozen = nil
	c.flushMu.Lock()
	if c.last == me {
		c.last = nil
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
//
// When the next commit has callers waiting already, step 1 of it comes before step 4 of this one, whose sync is its step 2 as well: it
// covers the data of every extent whose tables it covers. So flushes that follow each other closely cost one sync each.
func (c *Chain) commitOnce(me *commit) error {
	if me.frozen == nil {
		me.frozen = c.freezeLive()
	}
	f := me.frozen
	if err := storeData(f.links, f.synced); err != nil {
		return err
	}
	var next *frozen
	early := func() { next = c.freezeNext() }
	if len(f.links) > 1 { // the links are synced one after the other, not all by the last sync
		early = func() {}
	}
	synced, err := storeTables(f.tables, early)
	if err != nil {
		return err
	}
	if next != nil {
		next.synced = synced
	}
	if c.o.Pending != nil {
		c.o.Pending.Retire(f.mark)
	}
	return nil
}

func (c *Chain) freezeLive() *frozen {
	c.commitMu.Lock()
	defer c.commitMu.Unlock()
	f := &frozen{links: c.liveLinks()}
	if c.o.Pending != nil {
		f.mark = c.o.Pending.Mark()
	}
	f.tables = freeze(f.links)
	return f
}

// freezeNext does step 1 of the commit that waits, if one does: nobody joins it any more.
func (c *Chain) freezeNext() *frozen {
	c.flushMu.Lock()
	next := c.joinable
	c.joinable = nil
	c.flushMu.Unlock()
	if next == nil {
		return nil
	}
	next.frozen = c.freezeLive()
	return next.frozen
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

// store is steps 2 to 4 of the protocol.
func store(links []*vmdk.Link, tables [][]*vmdk.Frozen) error {
	err := storeData(links, nil)
	if err == nil {
		_, err = storeTables(tables, func() {})
	}
	return err
}

// storeData is step 2, for the extents whose data is not durable already.
func storeData(links []*vmdk.Link, synced map[*vmdk.Extent]bool) error {
	for _, l := range links {
		for _, e := range l.Extents() {
			if synced[e] {
				continue
			}
			if err := e.SyncData(); err != nil {
				return err
			}
		}
	}
	return nil
}

// storeTables is steps 3 and 4. With two links, the tables of the lower one are durable before any of the upper one are written: a
// grain that was moved down must not be gone above while it is missing below. It calls early between the two steps of the last link
// and gives the extents that step 4 synced after that.
func storeTables(tables [][]*vmdk.Frozen, early func()) (map[*vmdk.Extent]bool, error) {
	synced := map[*vmdk.Extent]bool{}
	for i, fs := range tables {
		for _, f := range fs {
			if err := f.WriteTables(); err != nil {
				return nil, err
			}
		}
		if i == len(tables)-1 {
			early()
		}
		for _, f := range fs {
			did, err := f.SyncTables()
			if err != nil {
				return nil, err
			}
			if did {
				synced[f.Extent()] = true
			}
		}
	}
	for _, fs := range tables {
		for _, f := range fs {
			f.Thaw()
		}
	}
	return synced, nil
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
