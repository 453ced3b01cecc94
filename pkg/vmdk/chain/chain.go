package chain

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// Ref names a link of a chain.
type Ref struct {
	// Name is the descriptor's file name in the directory of the chain.
	Name string
	// Type, ExtentNames: what a manifest knows about the link, compared if set.
	Type        vmdk.Type
	ExtentNames []string
	// Size is the capacity in bytes that a manifest records, compared if set. Links may differ in size only where both
	// sides of the step have it set, and only upwards: a step somebody recorded. A parent may be larger than recorded if it
	// is as large as its child: a merge down had grown it when it was given up.
	Size int64
	// Growing says of a head that it may be larger than Size: a growth of it was begun, and perhaps interrupted.
	Growing bool
	// Mend lets an open for writing recover this parent and mark it clean if it is not: it became a parent, or was merged,
	// right before a crash. Name the links whose extents no other disk shares.
	Mend bool
}

// MaxDepth is how many links are opened; VMware supports 32.
const MaxDepth = 64

// Options of Open.
type Options struct {
	// ReadOnly opens every link read-only and writes nothing, not even a flag. Otherwise the head is opened for writing.
	ReadOnly bool
	// Direct moves guest data past the page cache.
	Direct bool
	// Pending keeps acknowledged table changes across the death of this process; nil if nobody will take over.
	Pending Pending
	// Takeover says that the previous holder died without closing, that it is surely dead, and that the machine has run
	// since: Pending is applied instead of a check. It needs Pending if the head has sparse extents. Only a holder whose
	// Open had succeeded can be taken over; else open without it, so that an interrupted recovery is finished.
	Takeover bool
	// Format says how a flat disk holds its space, default thin: a thick one keeps it when the guest discards, and grows thick.
	Format vmdk.Format
	// Devices are what vmdk.Options has, for all links.
	Devices map[string]string
	// Locks takes byte locks on all extents, as qemu does.
	Locks bool
	// IgnoreCID opens a chain whose parent was modified, read-only. What it reads may be a mixture.
	IgnoreCID bool
}

// Chain is an open chain; it is the disk.
type Chain struct {
	refs  []Ref
	links []*vmdk.Link // base first
	head  *vmdk.Link
	o     Options
	dir   fsx.Dir

	size     atomic.Int64
	closed   bool // guarded by gate
	gate     sync.RWMutex
	stripes  [256]sync.Mutex // of the head
	commitMu sync.RWMutex
	poison   atomic.Pointer[fault.Fault]

	lowerStripes [256]sync.Mutex // of the link below that is written too

	linksMu sync.Mutex // for Links; everybody else reads links and refs under the gate
	merging *merging   // guarded by gate; nil: none

	startMu sync.Mutex
	started atomic.Bool // the content ID of the head is new

	unshared atomic.Bool     // the file system does not share blocks between files
	changeMu sync.Mutex      // one growth, snapshot or merge at a time; guards the next two
	behind   []Identity      // descriptors that a merge should have changed
	resumeAt resume          // of a merge that was given up
	life     context.Context // ends when the chain is closed
	end      context.CancelFunc

	flushMu  sync.Mutex
	joinable *commit // can be joined: it waits for another
	last     *commit // the last to begin, in progress or waiting; nil: idle
}

var _ block.Device = (*Chain)(nil)

// Open opens a chain, base first, head last. Nothing is changed on disk but, if the head was not closed cleanly and
// this is no take-over, what vmdk.Link.Recover mends.
func Open(d fsx.Dir, links []Ref, o Options) (*Chain, error) {
	if len(links) == 0 || len(links) > MaxDepth {
		return nil, fault.New(fault.OutOfRange, "consolidate the disk", "a chain has 1 to %d links, not %d", MaxDepth, len(links))
	}
	if o.IgnoreCID && !o.ReadOnly {
		return nil, fault.New(fault.Invalid, "open it read-only", "content IDs can be ignored for reading only")
	}
	c := &Chain{refs: append([]Ref(nil), links...), o: o, dir: d}
	c.life, c.end = context.WithCancel(context.Background())
	if err := c.open(); err != nil {
		c.end()
		for _, l := range c.links {
			err = errors.Join(err, l.Close())
		}
		return nil, err
	}
	return c, nil
}

func (c *Chain) open() error {
	for i, r := range c.refs {
		head := i == len(c.refs)-1
		l, err := vmdk.Open(c.dir, r.Name, vmdk.Options{ReadWrite: head && !c.o.ReadOnly, Direct: c.o.Direct, Lock: c.o.Locks, Devices: c.o.Devices,
			Type: r.Type, ExtentNames: r.ExtentNames, MoreExtents: !head})
		if err != nil {
			return fault.Wrap(err, "link %d", i)
		}
		c.links = append(c.links, l)
	}
	c.head = c.links[len(c.links)-1]
	if err := c.validate(); err != nil {
		return err
	}
	c.size.Store(c.head.Size())
	if c.o.ReadOnly {
		return nil
	}
	if c.o.Takeover {
		if err := c.takeOver(); err != nil {
			return err
		}
		return c.mendParents()
	}
	if c.o.Pending != nil && len(c.o.Pending.Load()) > 0 {
		return fault.New(fault.Invalid, "take the disk over, or start with an empty table", "the pending table holds entries, but this is no take-over")
	}
	if c.head.Unclean() {
		if err := c.head.Recover(); err != nil {
			return fault.Wrap(err, "%s was not closed cleanly", c.head.Name)
		}
	}
	return c.mendParents()
}

// mendParents makes the parents clean that a crash left unclean, if the caller allows it.
func (c *Chain) mendParents() error {
	for i, r := range c.refs[:len(c.refs)-1] {
		if !r.Mend || !c.links[i].Unclean() {
			continue
		}
		if err := c.mend(i); err != nil {
			return fault.Wrap(err, "%s was not closed cleanly", r.Name)
		}
	}
	return nil
}

// validate compares neighbours: content IDs, capacities, and that no file occurs twice.
func (c *Chain) validate() error {
	type id struct{ dev, ino uint64 }
	seen := map[id]string{}
	for i, l := range c.links {
		inodes, err := l.Inodes()
		if err != nil {
			return err
		}
		for _, n := range inodes {
			if other, ok := seen[id{n.Device, n.Inode}]; ok {
				return fault.New(fault.Damaged, "restore the descriptors", "%s uses a file that %s uses", l.Name, other)
			}
			seen[id{n.Device, n.Inode}] = l.Name
		}
		if r := c.refs[i]; r.Size != 0 && r.Size != l.Size() && !(r.Growing && l.Size() > r.Size) && !c.grownForMerge(i) {
			return fault.New(fault.Damaged, "restore the descriptor", "%s has %d bytes, its manifest says %d", l.Name, l.Size(), r.Size)
		}
		if i == 0 {
			if d := l.Descriptor(); d.IsChild() {
				return fault.New(fault.Precondition, "give all links of the chain", "%s needs a parent (%q)", l.Name, d.ParentHint())
			}
			continue
		}
		if err := c.validatePair(i); err != nil {
			return err
		}
	}
	return nil
}

// grownForMerge tells that link i has the size of its child, below which it is recorded. A head that may be growing, or
// has no recorded size above a link that a merge may have written, has the size that it says.
func (c *Chain) grownForMerge(i int) bool {
	if i+1 >= len(c.links) || c.links[i].Size() != c.links[i+1].Size() {
		return false
	}
	above := c.refs[i+1].Size
	if head := c.refs[len(c.refs)-1]; i+1 == len(c.links)-1 && (head.Growing || head.Size == 0 && c.refs[i].Mend) {
		above = c.links[i+1].Size()
	}
	return above > c.refs[i].Size && c.links[i].Size() > c.refs[i].Size
}

func (c *Chain) validatePair(i int) error {
	parent, child := c.links[i-1], c.links[i]
	pd, cd := parent.Descriptor(), child.Descriptor()
	switch {
	case !cd.IsChild():
		return fault.New(fault.Damaged, "restore the descriptor", "%s has no parent, but the chain has %s below it", child.Name, parent.Name)
	case cd.ParentCID() != pd.CID() && !c.o.IgnoreCID:
		return fault.New(fault.Damaged, "restore the parent from a backup; if its content is known to be right, run vmdkctl fix-cid",
			"the parent %s was modified after the child %s was made: content ID %s, expected %s", parent.Name, child.Name, pd.CID(), cd.ParentCID())
	case parent.Size() == child.Size():
		return nil
	case (c.refs[i].Size != 0 || i == len(c.refs)-1) && c.refs[i-1].Size != 0 && parent.Size() < child.Size():
		return nil // a recorded step; the head may be at a growth, of which its descriptor alone knows the end
	case c.o.ReadOnly && parent.Size() < child.Size() && c.refs[i].Size == 0:
		return nil // foreign chains: what the parent lacks reads as zeros
	}
	return fault.New(fault.Damaged, "", "the capacities of %s and %s differ: %d and %d bytes", parent.Name, child.Name, parent.Size(), child.Size())
}

// Size implements block.Device.
func (c *Chain) Size() int64 { return c.size.Load() }

// Links are the open links, base first. A snapshot or merge changes which they are; the slice stays as it is.
func (c *Chain) Links() []*vmdk.Link {
	c.linksMu.Lock()
	defer c.linksMu.Unlock()
	return c.links
}

// enter begins a request on [off, off+n): leave must follow unless it fails.
func (c *Chain) enter(off, n int64) error {
	c.gate.RLock()
	err := c.alive()
	if err == nil && (off < 0 || n < 0 || off > c.Size()-n) {
		err = fault.New(fault.OutOfRange, "", "bytes %d..%d are not inside the disk of %d bytes", off, off+n, c.Size())
	}
	if err != nil {
		c.gate.RUnlock()
	}
	return err
}

func (c *Chain) leave() { c.gate.RUnlock() }

// alive needs the gate.
func (c *Chain) alive() error {
	if p := c.poison.Load(); p != nil {
		return p
	}
	if c.closed {
		return fault.New(fault.Precondition, "open it again", "the disk is closed")
	}
	return nil
}

// fail poisons the disk: from now on nothing about it is certain.
func (c *Chain) fail(err error) error {
	f := fault.New(fault.Poisoned, "detach the disk, check the datastore, and attach it again: it is checked then",
		"disk %s: an earlier write or sync failed: %v", c.head.Name, err)
	c.poison.CompareAndSwap(nil, f)
	return fmt.Errorf("%w: %w", c.poison.Load(), err)
}
