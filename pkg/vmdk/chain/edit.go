package chain

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// editPiece is how much of a disk is looked at in one go.
const editPiece = 4 << 20

// zeroPiece is the unit in which zeros of a flat extent are given up: what a file system's block is at most.
const zeroPiece = 64 << 10

// EditParams of Shrink and Rebase.
type EditParams struct {
	// Format, as in Options: a thick disk keeps its space.
	Format vmdk.Format
	// Progress, if set, is told how many bytes of the disk have been looked at.
	Progress func(done, total int64)
	// DryRun changes nothing: the answer is what would be done.
	DryRun bool
}

// Shrink gives the space of zeros in the head of a closed chain back to the file system: grains of zeros become zeros without
// space, blocks of zeros of a flat disk become holes. What is read stays the same. It returns the bytes that were given back.
// Kinds: InUse, Unsupported (a thick disk, or a file system without holes), and those of Open.
//
// Each range is given up by Discard, whose order of writes holds; after a crash anywhere the disk reads the same, and the next
// Shrink does the rest.
func Shrink(ctx context.Context, d fsx.Dir, refs []Ref, p EditParams) (freed int64, err error) {
	if p.Format != "" && p.Format != vmdk.Thin {
		return 0, fault.New(fault.Unsupported, "convert it to a thin disk", "a %s disk keeps its space", p.Format)
	}
	c, err := Open(d, refs, Options{Locks: true, Format: p.Format, ReadOnly: p.DryRun})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	give := c.Discard
	if p.DryRun {
		give = func(_, n int64) error {
			freed += n
			return nil
		}
	}
	before, err := c.used()
	if err != nil {
		return 0, err
	}
	for _, e := range c.head.Extents() {
		if err := c.shrinkExtent(ctx, e, p, give); err != nil {
			return 0, fault.Wrap(err, "shrink %s", c.head.Name)
		}
	}
	if p.DryRun {
		return freed, nil
	}
	if err := c.Flush(); err != nil {
		return 0, err
	}
	c.gate.Lock()
	c.reclaimAll()
	c.gate.Unlock()
	after, err := c.used()
	return max(0, before-after), err
}

// used is what the files of the head take of the file system.
func (c *Chain) used() (n int64, err error) {
	infos, err := c.head.Inodes()
	for _, i := range infos {
		n += i.Allocated
	}
	return n, err
}

func (c *Chain) shrinkExtent(ctx context.Context, e *vmdk.Extent, p EditParams, give func(off, n int64) error) error {
	buf := make([]byte, editPiece)
	for off := int64(0); off < e.Len; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, data, err := nextData(e, off)
		if err != nil {
			return err
		}
		if data {
			n = min(n, int64(len(buf))-off%editPiece)
			if _, err := c.ReadAt(buf[:n], e.Start+off); err != nil {
				return err
			}
			if err := giveZeros(e, buf[:n], off, give); err != nil {
				return err
			}
		}
		off += n
		if p.Progress != nil {
			p.Progress(e.Start+off, c.Size())
		}
	}
	return nil
}

// nextData tells whether an extent has data of its own at off, and for how many bytes that holds.
func nextData(e *vmdk.Extent, off int64) (n int64, data bool, err error) {
	r, err := e.Run(off, e.Len-off)
	if err != nil || r.State != vmdk.Allocated || e.Kind != vmdk.Flat {
		return r.Len, r.State == vmdk.Allocated, err
	}
	start, end, err := e.SeekData(off)
	switch {
	case errors.Is(err, io.EOF):
		return e.Len - off, false, nil
	case err != nil:
		return r.Len, true, nil //nolint:nilerr // a file system without SEEK_DATA: everything may be data
	case start > off:
		return start - off, false, nil
	}
	return end - off, true, nil
}

// giveZeros gives the units of b up, which lies at off of an extent, that are zeros as a whole.
func giveZeros(e *vmdk.Extent, b []byte, off int64, give func(off, n int64) error) error {
	unit := e.GrainBytes()
	if unit == 0 {
		unit = zeroPiece
	}
	from := int64(-1) // begin of the zeros that wait
	flush := func(to int64) error {
		if from < 0 {
			return nil
		}
		at, n := e.Start+from, to-from
		from = -1
		return give(at, n)
	}
	for at := int64(0); at < int64(len(b)); {
		n := min(int64(len(b))-at, unit-(off+at)%unit)
		whole := (off+at)%unit == 0 && (n == unit || off+at+n == e.Len)
		switch {
		case !whole || !isZero(b[at:at+n]):
			if err := flush(off + at); err != nil {
				return err
			}
		case from < 0:
			from = off + at
		}
		at += n
	}
	return flush(off + int64(len(b)))
}

// RebaseParams of Rebase.
type RebaseParams struct {
	EditParams
	// Unsafe changes the parent without looking at what it holds: the disk will read what the new parent has. For parents that were
	// moved or copied.
	Unsafe bool
}

// Rebase gives the head of a closed chain another parent, the head of the chain parents, or none if parents is empty: then it
// becomes a base. What the disk reads stays the same, unless Unsafe. Kinds: InUse, Invalid, and those of Open.
//
//  1. Where the head has nothing of its own and the old parent's content differs from the new one's, the old content is written into the
//     head. [After a crash the disk reads the same: by its old parent.]
//  2. Flush, close.
//  3. The descriptor names the new parent: the commit point, by rename.
func Rebase(ctx context.Context, d fsx.Dir, refs, parents []Ref, p RebaseParams) (err error) {
	head := refs[len(refs)-1].Name
	place := vmdk.Place{ParentCID: vmdk.NoParent}
	base, err := infoOf(d, refs[0].Name)
	if err != nil {
		return err
	}
	if len(parents) == 0 {
		place.UUID = base.UUID
	}
	own, err := infoOf(d, head)
	if err != nil {
		return err
	}
	var below *Chain
	if len(parents) > 0 {
		for _, r := range parents {
			if r.Name == head {
				return fault.New(fault.Invalid, "name another parent", "%s would be its own parent", head)
			}
		}
		if below, err = Open(d, parents, Options{ReadOnly: true, Locks: !p.Unsafe}); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, below.Close()) }()
		if below.Size() != own.Capacity {
			return fault.New(fault.Invalid, "name a parent of the same capacity", "%s has %d bytes, %s %d", head, own.Capacity, parents[len(parents)-1].Name, below.Size())
		}
		info := below.head.Info()
		place.ParentCID, place.Parent = info.CID, info.Name
	}
	if len(refs) > 1 && !vmdk.Type(own.Type).Sparse() || len(parents) > 0 && !vmdk.Type(own.Type).Sparse() {
		return fault.New(fault.Unsupported, "convert it to a sparse type", "a %s link has no parent", own.Type)
	}
	if p.DryRun {
		return nil
	}
	if !p.Unsafe {
		if err := keepContent(ctx, d, refs, below, p.EditParams); err != nil {
			return fault.Wrap(err, "rebase %s", head)
		}
	}
	return vmdk.Rebind(d, head, place)
}

// keepContent is steps 1 and 2 of Rebase.
func keepContent(ctx context.Context, d fsx.Dir, refs []Ref, below *Chain, p EditParams) (err error) {
	c, err := Open(d, refs, Options{Locks: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	have, want := make([]byte, editPiece), make([]byte, editPiece)
	for _, e := range c.head.Extents() {
		for off := int64(0); off < e.Len; {
			if err := ctx.Err(); err != nil {
				return err
			}
			r, err := e.Run(off, min(e.Len-off, editPiece))
			if err != nil {
				return err
			}
			if r.State == vmdk.Unallocated {
				if err := c.keepPiece(below, have[:r.Len], want[:r.Len], e.Start+off, e.GrainBytes()); err != nil {
					return err
				}
			}
			off += r.Len
			if p.Progress != nil {
				p.Progress(e.Start+off, c.Size())
			}
		}
	}
	return nil
}

// keepPiece writes the grains of a piece that the new parent has otherwise.
func (c *Chain) keepPiece(below *Chain, have, want []byte, off, grain int64) error {
	if _, err := c.ReadAt(want, off); err != nil {
		return err
	}
	if below == nil {
		clear(have)
	} else if _, err := below.ReadAt(have, off); err != nil {
		return err
	}
	for at := int64(0); at < int64(len(want)); at += grain {
		n := min(grain, int64(len(want))-at)
		if bytes.Equal(have[at:at+n], want[at:at+n]) {
			continue
		}
		if _, err := c.WriteAt(want[at:at+n], off+at); err != nil {
			return err
		}
	}
	return nil
}

// FixCIDs makes every link of a closed chain name the content ID that its parent has, for an administrator who knows that the parents'
// content is the right one. It returns the links that it changed, base first.
func FixCIDs(d fsx.Dir, names []string, dryRun bool) (fixed []Identity, err error) {
	for i := 1; i < len(names); i++ {
		parent, err := infoOf(d, names[i-1])
		if err != nil {
			return fixed, err
		}
		child, err := infoOf(d, names[i])
		if err != nil {
			return fixed, err
		}
		if child.ParentCID == parent.CID && child.Parent == names[i-1] {
			continue
		}
		place := vmdk.Place{ParentCID: parent.CID, Parent: names[i-1]}
		if !dryRun {
			if err := vmdk.Rebind(d, names[i], place); err != nil {
				return fixed, err
			}
		}
		fixed = append(fixed, Identity{Name: names[i], CID: child.CID, ParentCID: parent.CID, Parent: names[i-1]})
	}
	return fixed, nil
}
