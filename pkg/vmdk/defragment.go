package vmdk

import (
	"context"
	"errors"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// copyPiece is how much is copied in one go.
const copyPiece = 4 << 20

// Defragmented is what Defragment did. Sizes are bytes.
type Defragmented struct {
	Before  int64 `json:"before"` // length of the files
	After   int64 `json:"after"`
	Extents int   `json:"extents"` // extents written anew
}

// Defragment writes the sparse extents of a closed link anew: grains in the order of the disk, no space that no entry names, every
// table there twice, the standard header. Content, content IDs and names stay. Nobody may have the link open. Kinds: InUse,
// Unsupported (no hosted sparse extents), and those of Open.
//
// For each extent: 1. the new file under a temporary name, data, then tables, then header, synced; [a crash leaves garbage under that
// name, which the next try replaces] 2. rename onto the extent: old and new have the same content, so it does not matter which of them
// a crash leaves.
func Defragment(ctx context.Context, d fsx.Dir, name string, progress func(done, total int64)) (r Defragmented, err error) {
	return defragment(ctx, d, name, false, progress)
}

// PlanDefragment says what Defragment would do.
func PlanDefragment(ctx context.Context, d fsx.Dir, name string) (Defragmented, error) {
	return defragment(ctx, d, name, true, nil)
}

func defragment(ctx context.Context, d fsx.Dir, name string, dryRun bool, progress func(done, total int64)) (r Defragmented, err error) {
	l, err := Open(d, name, Options{ReadWrite: !dryRun, Lock: true})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if l.Unclean() && !dryRun {
		if err := l.Recover(); err != nil {
			return r, fault.Wrap(err, "%s was not closed cleanly", name)
		}
		if err := l.MarkClean(); err != nil {
			return r, err
		}
	}
	for _, e := range l.extents {
		if e.Kind == Sparse && e.sp.h.raw[0] == 'K' {
			r.Extents++
		}
	}
	if r.Extents == 0 {
		return r, fault.New(fault.Unsupported, "", "%s has no sparse extents of VMware's hosted products", name)
	}
	for _, e := range l.extents {
		if e.Kind != Sparse || e.sp.h.raw[0] != 'K' {
			continue
		}
		if dryRun {
			before, after, err := e.rewritten()
			if err != nil {
				return r, err
			}
			r.Before, r.After = r.Before+before, r.After+after
			continue
		}
		before, after, err := e.rewrite(ctx, d, l.embedded, func(done int64) {
			if progress != nil {
				progress(e.Start+done, l.Size())
			}
		})
		if err != nil {
			return r, fault.Wrap(err, "defragment %s", e.Name)
		}
		r.Before, r.After = r.Before+before, r.After+after
	}
	return r, nil
}

// rewritten is how long the extent's file is, and would be.
func (e *Extent) rewritten() (before, after int64, err error) {
	info, err := e.inode()
	if err != nil {
		return 0, 0, err
	}
	old := e.sp.h
	h := layout(int64(old.capacity), int64(old.grain), int64(old.descSize))
	after = int64(h.overHead) * SectorSize
	for off := int64(0); off < e.Len; {
		r, err := e.Run(off, e.Len-off)
		if err != nil {
			return 0, 0, err
		}
		if r.State == Allocated {
			after += roundUp(r.Len, e.GrainBytes())
		}
		off += r.Len
	}
	return info.Size, after, nil
}

// rewrite is the protocol of one extent.
func (e *Extent) rewrite(ctx context.Context, d fsx.Dir, embedded bool, progress func(int64)) (before, after int64, err error) {
	temp := tempName(e.Name)
	f, err := d.Open(temp, fsx.ReadWrite|fsx.Create)
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, removeIfThere(d, temp))
		}
	}()
	if err = f.Truncate(0); err != nil {
		return 0, 0, err
	}
	old := e.sp.h
	h := layout(int64(old.capacity), int64(old.grain), int64(old.descSize))
	if old.flags&flagZeroGrain != 0 {
		h.version, h.flags = 2, h.flags|flagZeroGrain
	}
	if after, err = e.copyInOrder(ctx, f, h, progress); err != nil {
		return 0, 0, err
	}
	if embedded {
		b := make([]byte, old.descSize*SectorSize)
		if err = readFull(e.sp.file, b, int64(old.descOff)*SectorSize); err != nil {
			return 0, 0, err
		}
		if _, err = f.WriteAt(b, int64(h.descOff)*SectorSize); err != nil {
			return 0, 0, err
		}
	}
	for _, at := range []uint64{h.rgdOff, h.gdOff} {
		if _, err = f.WriteAt(h.directory(at), int64(at)*SectorSize); err != nil {
			return 0, 0, err
		}
	}
	if _, err = f.WriteAt(h.encode(), 0); err != nil {
		return 0, 0, err
	}
	if err = f.Datasync(); err != nil {
		return 0, 0, err
	}
	info, err := e.inode()
	if err != nil {
		return 0, 0, err
	}
	if err = d.Rename(temp, e.Name); err != nil {
		return 0, 0, err
	}
	return info.Size, after, nil
}

// copyInOrder copies grains and writes the tables that name them, and returns the length of the file.
func (e *Extent) copyInOrder(ctx context.Context, f fsx.File, h *header, progress func(int64)) (int64, error) {
	gb := int64(h.grain) * SectorSize
	per := int64(h.gtes)
	next := int64(h.overHead)
	if err := f.Truncate(next * SectorSize); err != nil {
		return 0, err
	}
	buf := make([]byte, max(copyPiece, gb))
	grains := ceilDiv(e.Len, gb)
	for i := range h.numGTs() {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		table := make([]uint32, per)
		used := false
		for g := i * per; g < min((i+1)*per, grains); {
			r, err := e.Run(g*gb, min(int64(len(buf))/gb*gb, ((i+1)*per-g)*gb))
			if err != nil {
				return 0, err
			}
			n := ceilDiv(r.Len, gb)
			for k := range n {
				switch r.State {
				case Zeroed:
					table[g%per+k], used = 1, true
				case Allocated:
					table[g%per+k], used = uint32(next+k*int64(h.grain)), true
				}
			}
			if r.State == Allocated {
				b := buf[:n*gb]
				if err := e.ReadFile(b, r.Offset); err != nil {
					return 0, err
				}
				if _, err := f.WriteAt(b, next*SectorSize); err != nil {
					return 0, err
				}
				next += n * int64(h.grain)
			}
			g += n
		}
		if used {
			b := encodeEntries(table)
			for _, at := range []uint64{h.rgdOff, h.gdOff} {
				if _, err := f.WriteAt(b, (int64(at)+gdSectors(h.numGTs())+i*h.gtSectors())*SectorSize); err != nil {
					return 0, err
				}
			}
		}
		progress(min((i+1)*per*gb, e.Len))
	}
	return next * SectorSize, nil
}
