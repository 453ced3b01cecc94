package vmdk

import (
	"cmp"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// pageSize is the block of the file systems that matter: a direct write of whole ones that are allocated runs beside others of the file,
// every other write (ext4, XFS: buffered, or of parts of a block) waits until none is under way, and holds up those that come.
const pageSize = 4096

const (
	maxPages        = 1024 // bounds the memory of tablePages: 4 MiB of an extent, and what one commit changes
	maxPagesOfWrite = 64
)

// WriteTables writes the frozen sectors, all redundant copies before all primaries.
func (f *Frozen) WriteTables() error {
	s := f.e.sp
	copies := 1
	if s.rgd != nil {
		copies = 2
	}
	for c := range copies {
		for _, t := range f.tables {
			s.mu.Lock()
			at := s.copies(t.i)[c]
			s.mu.Unlock()
			for lo := 0; lo < len(t.data)/SectorSize; {
				if t.mask>>lo&1 == 0 {
					lo++
					continue
				}
				hi := lo
				for hi < len(t.data)/SectorSize && t.mask>>hi&1 == 1 {
					hi++
				}
				if err := f.e.writeTable(t.data[lo*SectorSize:hi*SectorSize], at+int64(lo)*SectorSize); err != nil {
					return fault.Wrap(err, "extent %s: write grain table %d", s.name, t.i)
				}
				lo = hi
			}
		}
		if err := f.e.flushPages(); err != nil {
			return fault.Wrap(err, "extent %s: write grain tables", s.name)
		}
	}
	return nil
}

// tablePages are blocks of the file that hold nothing but grain tables, as they are in the file or about to be. Only the one
// commit that runs uses them, and nobody else writes there while the extent is open.
type tablePages struct {
	runs  [][2]int64       // where tables lie one behind the other: [begin, end) in bytes, ascending; nil: not looked yet
	pages map[int64][]byte // by byte offset
	dirty []int64          // to be written
}

// writeTable changes sectors of a table, to be written by flushPages. Blocks at either end of the tables, which hold something else as
// well, are written at once, sector by sector and through the page cache: others may change what is beside.
func (e *Extent) writeTable(p []byte, off int64) error {
	t := &e.sp.pages
	for len(p) > 0 {
		at := off / pageSize * pageSize
		n := min(int64(len(p)), at+pageSize-off)
		if t.only(e.sp, at, at+pageSize) {
			page, err := t.page(e.data, at)
			if err != nil {
				return err
			}
			copy(page[off-at:], p[:n])
			if n := len(t.dirty); n == 0 || t.dirty[n-1] != at {
				t.dirty = append(t.dirty, at)
			}
		} else if _, err := e.sp.file.WriteAt(p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// flushPages writes the changed blocks, those that follow each other by one request.
func (e *Extent) flushPages() error {
	t := &e.sp.pages
	slices.Sort(t.dirty)
	t.dirty = slices.Compact(t.dirty)
	for dirty := t.dirty; len(dirty) > 0; {
		n := 1
		for n < len(dirty) && n < maxPagesOfWrite && dirty[n] == dirty[n-1]+pageSize {
			n++
		}
		b := t.pages[dirty[0]]
		if n > 1 {
			b = fsx.AlignedBuffer(n * pageSize)
			for i, at := range dirty[:n] {
				copy(b[i*pageSize:], t.pages[at])
			}
		}
		if _, err := e.data.WriteAt(b, dirty[0]); err != nil {
			return err
		}
		dirty = dirty[n:]
	}
	t.dirty = t.dirty[:0]
	return nil
}

// page is the block at a byte of the file.
func (t *tablePages) page(file fsx.File, at int64) ([]byte, error) {
	if p := t.pages[at]; p != nil {
		return p, nil
	}
	if t.pages == nil {
		t.pages = map[int64][]byte{}
	}
	if len(t.pages) >= maxPages && len(t.dirty) == 0 {
		clear(t.pages)
	}
	p := fsx.AlignedBuffer(pageSize)
	if err := readFull(file, p, at); err != nil {
		return nil, err
	}
	t.pages[at] = p
	return p, nil
}

// only tells that there are nothing but tables in a range.
func (t *tablePages) only(s *sparse, lo, hi int64) bool {
	if t.runs == nil {
		t.runs = s.tableRuns()
	}
	i, _ := slices.BinarySearchFunc(t.runs, lo, func(r [2]int64, lo int64) int { return cmp.Compare(r[1], lo+1) })
	return i < len(t.runs) && t.runs[i][0] <= lo && hi <= t.runs[i][1]
}

// tableRuns finds where tables lie one behind the other. Tables that are made later are not among them.
func (s *sparse) tableRuns() [][2]int64 {
	s.mu.Lock()
	var places []int64
	for _, dir := range [][]uint32{s.gd, s.rgd} {
		for _, at := range dir {
			if at > 1 {
				places = append(places, int64(at)*SectorSize)
			}
		}
	}
	size := s.h.gtSectors() * SectorSize
	s.mu.Unlock()
	slices.Sort(places)
	runs := [][2]int64{}
	for _, at := range places {
		if n := len(runs); n > 0 && runs[n-1][1] == at {
			runs[n-1][1] = at + size
			continue
		}
		runs = append(runs, [2]int64{at, at + size})
	}
	return runs
}
