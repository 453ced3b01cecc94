package chain

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// Snapshot puts an empty child on top of the chain, which is the head from then on; the former head keeps what the disk
// was at that moment. The disk is in use meanwhile. A nil error means that p.Commit has succeeded; what goes wrong after it
// is seen in the disk. fault.Poisoned: whether it has is not known. After any other error the disk goes on as before, and
// nothing is left.
//
//  1. Begin: the head's content ID is final, for the child records it.
//  2. Make the child and open it. [A crash until 6 leaves files that no manifest names.]
//  3. Commit, so that little is left for 5. 4. p.Before.
//  5. With requests kept out: commit. Pending is empty, and the former head durable as a whole.
//  6. p.Commit. [From here on the child is the head. It may be opened while its parent is marked unclean: Ref.Mend.]
//  7. The child is the head; requests go on.
//  8. The former head's freed grains go back to the file system; it is marked clean and opened read-only.
//
// What the guest feels is 5 to 7, in which only the commit takes system calls of this package.
func (c *Chain) Snapshot(ctx context.Context, p SnapshotParams) error {
	if c.o.ReadOnly {
		return fault.New(fault.ReadOnly, "open it for writing", "disk %s is open read-only", c.head.Name)
	}
	ctx, done, err := c.beginChange(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := c.catchUp(); err != nil {
		return err
	}
	child, err := c.makeChild(ctx, p)
	if err != nil {
		return fault.Wrap(err, "snapshot")
	}
	if err := c.takeChild(child, p); err != nil {
		if errors.Is(err, fault.Poisoned) {
			return errors.Join(err, child.Close()) // the files may be the disk's
		}
		return fault.Wrap(errors.Join(err, child.Close(), c.removeLink(child.Info())), "snapshot")
	}
	_ = c.retire(len(c.links) - 2) // the snapshot is there; a poisoned disk says so itself
	return nil
}

// makeChild is steps 1 to 4.
func (c *Chain) makeChild(ctx context.Context, p SnapshotParams) (*vmdk.Link, error) {
	if err := c.freeName(p.Child); err != nil {
		return nil, err
	}
	if len(c.links) >= MaxDepth {
		return nil, fault.New(fault.Exhausted, "delete snapshots", "the chain has %d links already", len(c.links))
	}
	if err := c.enterWrite(0, 0); err != nil {
		return nil, err
	}
	c.leave()
	if p.Type == "" {
		p.Type = vmdk.TwoGbMaxExtentSparse
	}
	adapter, _ := c.head.Descriptor().Get("ddb.adapterType")
	info, err := vmdk.Create(ctx, c.dir, p.Child, vmdk.CreateParams{Capacity: c.Size(), Type: p.Type,
		ExtentSize: p.ExtentSize, AdapterType: adapter, Parent: c.head.AsParent(), Resume: true})
	if err != nil {
		return nil, err
	}
	child, err := vmdk.Open(c.dir, p.Child, vmdk.Options{ReadWrite: true, Direct: c.o.Direct, Lock: c.o.Locks})
	if err != nil {
		return nil, errors.Join(err, c.removeLink(info))
	}
	if err = c.Flush(); err == nil && p.Before != nil {
		err = p.Before()
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, child.Close(), c.removeLink(info))
	}
	return child, nil
}

// freeName makes the name of a new link free: a descriptor that an earlier try left there is removed, for it may record
// another content ID. A name of this chain is refused.
func (c *Chain) freeName(name string) error {
	stem := strings.TrimSuffix(name, ".vmdk")
	for _, l := range c.links {
		if l.Name == name {
			return fault.New(fault.Invalid, "choose another name", "%s is a link of the disk", name)
		}
		for _, e := range l.Extents() {
			if e.Name == name || strings.HasPrefix(e.Name, stem+"-s") || e.Name == stem+"-delta.vmdk" {
				return fault.New(fault.Invalid, "choose another name", "the extent %s of %s could be an extent of %s", e.Name, l.Name, name)
			}
		}
	}
	if err := c.dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// removeLink removes the files of a link, descriptor first.
func (c *Chain) removeLink(info *vmdk.Info) error {
	names := []string{info.Name}
	for _, e := range info.Extents {
		names = append(names, e.Name)
	}
	var errs []error
	for _, n := range names {
		if err := c.dir.Remove(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// takeChild is steps 5 to 7.
func (c *Chain) takeChild(child *vmdk.Link, p SnapshotParams) error {
	c.gate.Lock()
	defer c.gate.Unlock()
	if err := c.alive(); err != nil {
		return err
	}
	if err := c.commit(); err != nil {
		return err
	}
	if p.Commit != nil {
		if err := p.Commit(c.head.Info(), child.Info()); err != nil {
			if errors.Is(err, fault.Poisoned) {
				return c.fail(err)
			}
			return err
		}
	}
	c.setLinks(append(append([]*vmdk.Link(nil), c.links...), child))
	c.started.Store(false)
	return nil
}
