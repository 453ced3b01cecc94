package vmdk

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// maxTables is how many grain tables of one extent stay in memory: 4096 tables of 2 KiB map 128 GiB.
const maxTables = 4096

// sparse is the grain map of an extent. Tables are read through file, a buffered handle of the extent's file that
// never touches a grain; grains go through Extent.data.
type sparse struct {
	name    string
	file    fsx.File
	h       *header
	grain   int64 // sectors
	sectors int64 // guest sectors in use: the smaller of the header's and the descriptor's

	// gd and rgd hold the sector of each table; they change under mu only (a missing table is made), and are read
	// under mu.
	gd, rgd []uint32
	// tables are loaded lazily; reading the pointer and its entries takes no lock.
	tables []atomic.Pointer[table]

	mu    sync.Mutex
	ring  []int32 // indices of loaded tables, oldest first
	dirty map[int32]struct{}
	begun atomic.Bool // this open has set uncleanShutdown durably

	alloc allocator
	pages tablePages
}

// table is a grain table in memory. entries are read and written atomically; the rest is guarded by sparse.mu.
type table struct {
	entries  []uint32
	dirty    uint32 // bit per 512-byte sector of the table
	flushing int    // frozen copies on their way to disk: reading it back could see an old one
	reserved bool   // space of the table is taken, so that its write-back cannot meet ENOSPC
}

func openSparse(name string, file fsx.File, h *header, lineSectors, size int64, rw bool) (*sparse, error) {
	s := &sparse{name: name, file: file, h: h, grain: int64(h.grain), sectors: min(lineSectors, int64(h.capacity)),
		dirty: map[int32]struct{}{}}
	var err error
	if s.gd, err = s.readDirectory(h.gdOff, size); err != nil {
		return nil, err
	}
	if rw && h.redundant() {
		if s.rgd, err = s.readDirectory(h.rgdOff, size); err != nil {
			return nil, err
		}
	}
	s.tables = make([]atomic.Pointer[table], len(s.gd))
	s.alloc.init(s, size)
	return s, nil
}

// readDirectory reads a grain directory; header.defects has checked that it lies inside the file.
func (s *sparse) readDirectory(at uint64, size int64) ([]uint32, error) {
	n := s.h.numGTs()
	b := make([]byte, n*4)
	if err := readFull(s.file, b, int64(at)*SectorSize); err != nil {
		return nil, fault.Wrap(err, "extent %s: grain directory", s.name)
	}
	d := decodeEntries(b)
	for i, e := range d {
		if e == 1 && s.h.flags&flagZeroGrain != 0 {
			continue
		}
		if e != 0 && s.h.cowd != nil && e < cowdDirectory || e != 0 && (int64(e)+s.h.gtSectors())*SectorSize > roundUp(size, SectorSize) {
			return nil, fault.New(fault.Damaged, "run vmdkctl check", "extent %s: grain table %d is at sector %d, outside the file", s.name, i, e)
		}
	}
	return d, nil
}

func decodeEntries(b []byte) []uint32 {
	out := make([]uint32, len(b)/4)
	for i := range out {
		out[i] = binary.LittleEndian.Uint32(b[i*4:])
	}
	return out
}

func readFull(f fsx.File, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fault.New(fault.Damaged, "restore the file, it was cut off", "the file ends at byte %d, %d bytes too early", off+int64(n), len(b)-n)
	}
	return err
}

// lookup is the table with this index, loaded if needed. nil: there is none, everything in it is unallocated.
func (s *sparse) lookup(i int64) (*table, error) {
	if t := s.tables[i].Load(); t != nil {
		return t, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.load(i)
}

// load needs s.mu.
func (s *sparse) load(i int64) (*table, error) {
	if t := s.tables[i].Load(); t != nil {
		return t, nil
	}
	t := &table{}
	switch at := s.gd[i]; at {
	case 0:
		return nil, nil
	case 1: // the whole table reads as zeros; readDirectory has checked the flag
		t.entries = make([]uint32, s.h.gtes)
		for j := range t.entries {
			t.entries[j] = 1
		}
	default:
		b := make([]byte, s.h.gtes*4)
		if err := readFull(s.file, b, int64(at)*SectorSize); err != nil {
			return nil, fault.Wrap(err, "extent %s: grain table %d", s.name, i)
		}
		t.entries = decodeEntries(b)
	}
	s.evict()
	s.tables[i].Store(t)
	s.ring = append(s.ring, int32(i))
	return t, nil
}

// evict makes room for one more table; needs s.mu. A reader that still holds the dropped table sees what was there when
// its request began; grains it names are not reused before that request is over (chain's gate).
func (s *sparse) evict() {
	for tries := len(s.ring); len(s.ring) >= maxTables && tries > 0; tries-- {
		i := s.ring[0]
		s.ring = s.ring[1:]
		if t := s.tables[i].Load(); t.dirty != 0 || t.flushing > 0 {
			s.ring = append(s.ring, i)
			continue
		}
		s.tables[i].Store(nil)
	}
}

// entry is the table entry of a grain, checked.
func (s *sparse) entry(g int64) (uint32, error) {
	t, err := s.lookup(g / int64(s.h.gtes))
	if t == nil || err != nil {
		return 0, err
	}
	e := atomic.LoadUint32(&t.entries[g%int64(s.h.gtes)])
	if e != 0 && (e == 1 && s.h.flags&flagZeroGrain == 0 || e > 1 && uint64(e) < s.h.overHead) {
		return 0, fault.New(fault.Damaged, "run vmdkctl check", "extent %s: grain %d is said to be at sector %d, inside the metadata", s.name, g, e)
	}
	return e, nil
}

// run describes the piece at byte off of the extent.
func (s *sparse) run(off, n int64) (Run, error) {
	gb := s.grain * SectorSize
	g := off / gb
	first, err := s.entry(g)
	if err != nil {
		return Run{}, err
	}
	r := Run{Len: min(n, (g+1)*gb-off)}
	switch first {
	case 0:
	case 1:
		r.State = Zeroed
	default:
		r.State, r.Offset = Allocated, int64(first)*SectorSize+off%gb
	}
	for r.Len < n {
		g++
		e, err := s.entry(g)
		if err != nil {
			break // the next call reports it, for the range it concerns
		}
		if r.State == Allocated && int64(e) != int64(first)+(g-off/gb)*s.grain || r.State != Allocated && e != first {
			break
		}
		r.Len += min(gb, n-r.Len)
	}
	return r, nil
}
