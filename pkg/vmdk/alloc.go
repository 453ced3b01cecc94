package vmdk

import (
	"sort"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// allocator hands out grains of one sparse extent.
//
// A grain that was never used lies at or behind next, which starts at the end of the file: nothing that any table,
// pending entry or request in flight of an earlier process names can lie there, because the file is extended before a
// grain is handed out. A grain that was given up goes through three stages: freed (the change that frees it is in
// memory), settled (that change is durable), free (and no request that began before still reads or writes it, and its
// content is zero). So every grain handed out reads as zeros.
type allocator struct {
	s  *sparse
	mu sync.Mutex

	next    int64 // first sector never handed out
	end     int64 // sectors of the file
	freed   []GrainRun
	settled []GrainRun
	free    []GrainRun
}

// GrainRun is a run of grains that were given up.
type GrainRun struct{ sector, grains int64 }

// A file is extended by a quarter of its size, within these limits, and the space is allocated in one piece: a write that
// allocates its own blocks keeps all others of the file waiting (ext4, XFS), and a file that grew by scattered grains is in pieces.
const (
	minGrowSectors = 1 << 20 / SectorSize
	maxGrowSectors = 16 << 20 / SectorSize
)

func (a *allocator) init(s *sparse, size int64) {
	a.s = s
	a.end = size / SectorSize
	a.next = roundUp(max(ceilDiv(size, SectorSize), int64(s.h.overHead)), s.grain)
}

// Alloc hands out up to want contiguous grains: their first sector and their number. They read as zeros.
// fault.NoSpace when the extent file is at the 2 TiB that its 32-bit entries reach.
func (e *Extent) Alloc(want int64) (sector, got int64, err error) {
	a := &e.sp.alloc
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.free); n > 0 {
		r := &a.free[n-1]
		got = min(want, r.grains)
		sector = r.sector
		r.sector += got * a.s.grain
		if r.grains -= got; r.grains == 0 {
			a.free = a.free[:n-1]
		}
		return sector, got, nil
	}
	end := a.end
	if err := a.reach(a.next + want*a.s.grain); err != nil {
		return 0, 0, err
	}
	if a.end > end {
		e.unsynced.Store(true) // a grain of zeros is not written, and must not lie behind the end of the file
	}
	sector = a.next
	a.next += want * a.s.grain
	return sector, want, nil
}

// reach extends the file so that it covers sector to; needs a.mu.
func (a *allocator) reach(to int64) error {
	if to > maxFileSectors {
		return fault.New(fault.NoSpace, "detach and compact the disk", "extent %s has reached 2 TiB of file, the limit of its format", a.s.name)
	}
	if to <= a.end {
		return nil
	}
	end := min(roundUp(to+min(max(a.end/4, minGrowSectors), maxGrowSectors), a.s.grain), maxFileSectors)
	if err := a.s.file.Truncate(end * SectorSize); err != nil {
		return fault.Wrap(err, "extent %s: extend", a.s.name)
	}
	// Without room for all of it the grains are allocated as they are written, and the write that finds none fails.
	err := a.s.file.Allocate(a.end*SectorSize, (end-a.end)*SectorSize)
	if k := fault.KindOf(err); err != nil && k != fault.NoSpace && k != fault.Unsupported {
		return fault.Wrap(err, "extent %s: allocate", a.s.name)
	}
	if a.s.h.cowd != nil {
		if err := a.s.cowdFree(end); err != nil {
			return err
		}
	}
	a.end = end
	return nil
}

// metadata hands out whole grains for n sectors of tables, never shared with a grain of data.
func (a *allocator) metadata(n int64) (int64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n = roundUp(n, a.s.grain)
	if err := a.reach(a.next + n); err != nil {
		return 0, err
	}
	at := a.next
	a.next += n
	return at, nil
}

// Free gives grains up. For grains a table named, the change must have been Set before, and no Freeze in between.
func (e *Extent) Free(sector, grains int64) {
	a := &e.sp.alloc
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.freed); n > 0 && a.freed[n-1].sector+a.freed[n-1].grains*a.s.grain == sector {
		a.freed[n-1].grains += grains // a discard of a whole disk is one run, not millions
		return
	}
	a.freed = append(a.freed, GrainRun{sector, grains})
}

func (a *allocator) takeFreed() []GrainRun {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.freed
	a.freed = nil
	return f
}

func (a *allocator) durable(f []GrainRun) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.settled = append(a.settled, f...)
}

// Settled is how many runs of freed grains wait for Reclaim.
func (e *Extent) Settled() int {
	if e.sp == nil {
		return 0
	}
	e.sp.alloc.mu.Lock()
	defer e.sp.alloc.mu.Unlock()
	return len(e.sp.alloc.settled)
}

// Settle takes the settled grains. When every request that had begun before this call is over, hand them to Reclaim.
func (e *Extent) Settle() []GrainRun {
	if e.sp == nil {
		return nil
	}
	a := &e.sp.alloc
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.settled
	a.settled = nil
	return r
}

// Reclaim gives the space of settled grains back to the file system and their place in the file to the allocator.
func (e *Extent) Reclaim(runs []GrainRun) error {
	g := e.sp.grain
	sort.Slice(runs, func(i, j int) bool { return runs[i].sector < runs[j].sector })
	merged := runs[:0]
	for _, r := range runs {
		if n := len(merged); n > 0 && merged[n-1].sector+merged[n-1].grains*g == r.sector {
			merged[n-1].grains += r.grains
			continue
		}
		merged = append(merged, r)
	}
	for _, r := range merged {
		if err := e.ZeroFile(r.sector*SectorSize, r.grains*g*SectorSize, true); err != nil {
			return err // what was not punched is leaked until the next check, never reused unzeroed
		}
		a := &e.sp.alloc
		a.mu.Lock()
		a.free = append(a.free, r)
		a.mu.Unlock()
	}
	return nil
}

// trim cuts the file behind the last grain that was handed out.
func (a *allocator) trim() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.end <= a.next {
		return nil
	}
	if err := a.s.file.Truncate(a.next * SectorSize); err != nil {
		return fault.Wrap(err, "extent %s: trim", a.s.name)
	}
	a.end = a.next
	return nil
}
