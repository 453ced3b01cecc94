package chain

import (
	"errors"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// setLinks replaces the links; needs the gate.
func (c *Chain) setLinks(links []*vmdk.Link) {
	c.linksMu.Lock()
	defer c.linksMu.Unlock()
	c.links = links
	c.head = links[len(links)-1]
}

// with is the links with another one at i.
func (c *Chain) with(i int, l *vmdk.Link) []*vmdk.Link {
	links := append([]*vmdk.Link(nil), c.links...)
	links[i] = l
	return links
}

// put makes l the link i and closes the files of the one before, which no request uses any more.
func (c *Chain) put(i int, l *vmdk.Link) error {
	c.gate.Lock()
	if err := c.alive(); err != nil {
		c.gate.Unlock()
		return errors.Join(err, l.Close())
	}
	old := c.links[i]
	c.setLinks(c.with(i, l))
	c.gate.Unlock()
	return old.Close()
}

// openAgain opens the files of a link a second time. A reader's locks are given up for a writer's, because both would be in
// each other's way; the locks of the head are held all the time, and keep others out of the chain.
func (c *Chain) openAgain(l *vmdk.Link, rw bool) (*vmdk.Link, error) {
	o := vmdk.Options{ReadWrite: rw, Direct: c.o.Direct, Type: l.Descriptor().Type(), Devices: c.o.Devices}
	for _, e := range l.Extents() {
		o.ExtentNames = append(o.ExtentNames, e.Name)
	}
	next, err := vmdk.Open(c.dir, l.Name, o)
	if err != nil || !c.o.Locks {
		return next, err
	}
	before, during, after := fsx.LockWrite, fsx.LockRead, fsx.LockRead
	if rw {
		before, during, after = fsx.LockRead, fsx.Unlock, fsx.LockWrite
	}
	err = l.LockAs(during)
	if err == nil {
		err = next.LockAs(after)
	}
	if err != nil {
		return nil, errors.Join(err, next.Close(), l.LockAs(before))
	}
	return next, nil
}

// retire makes link i, which was written, a parent: 1. its freed grains go back to the file system, 2. it is marked clean
// [a crash until here leaves it unclean: Ref.Mend], 3. its files are opened for reading, those for writing closed. All of
// it must be durable. A file that could not be punched or opened again is no harm: open for writing it has a reader's lock, too.
func (c *Chain) retire(i int) error {
	l := c.links[i]
	c.gate.RLock()
	err := c.alive()
	if err == nil {
		for _, e := range l.Extents() {
			if e.Settled() > 0 {
				_ = e.Reclaim(e.Settle())
			}
		}
		for _, e := range l.Extents() {
			if err == nil {
				err = e.SyncData() // what punching changed
			}
		}
		if err == nil {
			err = l.MarkClean()
		}
		if err != nil {
			err = c.fail(err)
		}
	}
	c.gate.RUnlock()
	if err != nil {
		return errors.Join(err, c.onlyRead(l))
	}
	next, err := c.openAgain(l, false)
	if err != nil {
		return c.onlyRead(l)
	}
	return c.put(i, next)
}

// onlyRead lets others read a link that stays open for writing and that nobody writes any more: what it holds was durable
// before it became a parent.
func (c *Chain) onlyRead(l *vmdk.Link) error {
	if !c.o.Locks {
		return nil
	}
	return l.LockAs(fsx.LockRead)
}

// mend recovers parent i and marks it clean; at Open only.
func (c *Chain) mend(i int) error {
	l, err := c.openAgain(c.links[i], true)
	if err != nil {
		return err
	}
	if err := l.Recover(); err != nil {
		return errors.Join(err, l.Close())
	}
	if err := c.put(i, l); err != nil {
		return err
	}
	return c.retire(i)
}

// Mend recovers a link of a closed chain that a crash left unclean after it had become a parent, or while it was merged,
// and marks it clean. It does nothing to a clean one. Nobody may write the link; a parent may be open for reading.
func Mend(d fsx.Dir, name string) error {
	l, err := vmdk.Open(d, name, vmdk.Options{})
	if err != nil {
		return err
	}
	unclean := l.Unclean()
	if err := l.Close(); err != nil || !unclean {
		return err
	}
	if l, err = vmdk.Open(d, name, vmdk.Options{ReadWrite: true}); err != nil {
		return err
	}
	err = l.Recover()
	if err == nil {
		err = l.Sync() // what a dead process wrote
	}
	if err != nil {
		return fault.Wrap(errors.Join(err, l.Close()), "%s was not closed cleanly", name)
	}
	return l.CloseClean()
}
