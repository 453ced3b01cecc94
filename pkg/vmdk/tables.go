package vmdk

import (
	"encoding/binary"
	"sort"
	"sync/atomic"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Begin makes the extent ready for the first change of this open: uncleanShutdown=1 is durable before any data or
// metadata is written (order of Virtual Disk Format writers; VirtualBox and VMware do the same). It is written even
// if it is set already: a predecessor may have died before its sync.
func (e *Extent) Begin() error {
	s := e.sp
	if s == nil || s.begun.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun.Load() {
		return nil
	}
	s.h.unclean = true
	if err := s.writeHeader(); err != nil {
		return err
	}
	s.begun.Store(true)
	return nil
}

// writeHeader writes sector 0 and syncs. One aligned sector is written whole or not at all.
func (s *sparse) writeHeader() error {
	if s.h.cowd != nil {
		return s.writeCowd()
	}
	if _, err := s.file.WriteAt(s.h.encode(), 0); err != nil {
		return fault.Wrap(err, "extent %s: write header", s.name)
	}
	return fault.Wrap(s.file.Datasync(), "extent %s: sync header", s.name)
}

// Prepare makes the tables of count grains from g on ready to be changed: missing ones are made, and their space is
// reserved, so that a full datastore fails the guest's write here and not the write-back of a flush.
func (e *Extent) Prepare(g, count int64) error {
	s := e.sp
	per := int64(s.h.gtes)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := g / per; i <= (g+count-1)/per; i++ {
		if s.gd[i] <= 1 || s.rgd != nil && s.rgd[i] <= 1 {
			if err := s.makeTable(i); err != nil {
				return err
			}
		}
		t, err := s.load(i)
		if err != nil {
			return err
		}
		if t.reserved {
			continue
		}
		for _, at := range s.copies(i) {
			if err := s.file.Allocate(at, s.h.gtSectors()*SectorSize); err != nil && fault.KindOf(err) != fault.Unsupported {
				return fault.Wrap(err, "extent %s: reserve grain table %d", s.name, i)
			}
		}
		t.reserved = true
	}
	return nil
}

// copies are the byte offsets of a table, the redundant copy first (its order of writing: after a crash between the
// two every entry of either names a durable grain, so "non-zero wins" repairs without loss).
func (s *sparse) copies(i int64) []int64 {
	if s.rgd != nil {
		return []int64{int64(s.rgd[i]) * SectorSize, int64(s.gd[i]) * SectorSize}
	}
	return []int64{int64(s.gd[i]) * SectorSize}
}

// makeTable gives a table without file space (directory entry 0 or 1) its place at the end of the file; needs s.mu.
// Protocol: 1. extend the file with the tables, filled with what the entry meant; 2. sync; [a crash leaks them]
// 3. redundant directory, then directory; the flush that writes the first entries syncs them too. [Until then either
// directory may lack the table, which has no flushed entries: "non-zero wins", and the next Prepare makes new tables.]
// 4. the directories in memory: after a failure in 1 to 3 they still lack the table, so that the next Prepare makes one and
// no entry is put into a table that no directory on disk names.
func (s *sparse) makeTable(i int64) error {
	n := s.h.gtSectors()
	copies := int64(1)
	if s.rgd != nil {
		copies = 2
	}
	at, err := s.alloc.metadata(n * copies)
	if err != nil {
		return err
	}
	if s.gd[i] == 1 || s.rgd != nil && s.gd[i] > 1 { // not all zeros: copy the content the primary has
		t, err := s.load(i)
		if err != nil {
			return err
		}
		b := make([]byte, n*SectorSize)
		for j := range t.entries {
			binary.LittleEndian.PutUint32(b[j*4:], t.entries[j])
		}
		for c := range copies {
			if _, err := s.file.WriteAt(b, (at+c*n)*SectorSize); err != nil {
				return fault.Wrap(err, "extent %s: write grain table %d", s.name, i)
			}
		}
	}
	if err := s.file.Datasync(); err != nil {
		return fault.Wrap(err, "extent %s: sync grain table %d", s.name, i)
	}
	if s.rgd != nil {
		if err := s.writeDirectoryEntry(s.h.rgdOff, i, uint32(at+n)); err != nil {
			return err
		}
	}
	if err := s.writeDirectoryEntry(s.h.gdOff, i, uint32(at)); err != nil {
		return err
	}
	if s.rgd != nil {
		s.rgd[i] = uint32(at + n)
	}
	s.gd[i] = uint32(at)
	return nil
}

func (s *sparse) writeDirectoryEntry(dir uint64, i int64, v uint32) error {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], v)
	_, err := s.file.WriteAt(b[:], int64(dir)*SectorSize+i*4)
	return fault.Wrap(err, "extent %s: write grain directory", s.name)
}

// Entry is the table entry of a grain: 0 unallocated, 1 zeroed, else its first sector.
func (e *Extent) Entry(g int64) (uint32, error) { return e.sp.entry(g) }

// Set changes entries of count grains from g on, in memory: to sector, sector+grain, ... or, if sector is 0 or 1, all
// to it. The tables must have been prepared.
func (e *Extent) Set(g, count int64, sector uint32) error {
	s := e.sp
	per := int64(s.h.gtes)
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range count {
		i, j := (g+k)/per, (g+k)%per
		t, err := s.load(i)
		if err != nil {
			return err
		}
		v := sector
		if sector > 1 {
			v += uint32(k * s.grain)
		}
		atomic.StoreUint32(&t.entries[j], v)
		t.dirty |= 1 << (j * 4 / SectorSize)
		s.dirty[int32(i)] = struct{}{}
	}
	return nil
}

// DirtyTables is how many tables wait for a flush. Beyond MaxDirtyTables a writer should commit, or eviction finds nothing.
func (e *Extent) DirtyTables() int {
	if e.sp == nil {
		return 0
	}
	e.sp.mu.Lock()
	defer e.sp.mu.Unlock()
	return len(e.sp.dirty)
}

// MaxDirtyTables is where a writer commits.
const MaxDirtyTables = maxTables / 2

// Frozen is a copy of the changed table sectors of one extent at one moment.
type Frozen struct {
	e      *Extent
	tables []frozenTable
	freed  []GrainRun
}

// Extent is whose tables they are.
func (f *Frozen) Extent() *Extent { return f.e }

type frozenTable struct {
	i    int64
	mask uint32
	data []byte // the whole table
}

// Freeze takes what was changed since the last Freeze. The caller keeps changes away for the moment, then syncs the
// data, then calls WriteTables, then SyncTables, then Thaw. The next Freeze may come before that SyncTables, which then also syncs
// that one's data; its WriteTables may not. nil if nothing was changed.
func (e *Extent) Freeze() *Frozen {
	s := e.sp
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &Frozen{e: e, freed: s.alloc.takeFreed()}
	for i := range s.dirty {
		t := s.tables[i].Load()
		b := make([]byte, len(t.entries)*4)
		for j, v := range t.entries {
			binary.LittleEndian.PutUint32(b[j*4:], v)
		}
		f.tables = append(f.tables, frozenTable{int64(i), t.dirty, b})
		t.dirty = 0
		t.flushing++
	}
	clear(s.dirty)
	if len(f.tables) == 0 && len(f.freed) == 0 {
		return nil
	}
	sort.Slice(f.tables, func(a, b int) bool { return f.tables[a].i < f.tables[b].i })
	return f
}

// SyncTables makes the written tables durable, and with them all data of the extent that was written before; synced tells whether there
// was anything to sync.
func (f *Frozen) SyncTables() (synced bool, err error) {
	if len(f.tables) == 0 {
		return false, nil
	}
	f.e.unsynced.Store(false) // before: what is written meanwhile sets it again
	return true, fault.Wrap(f.e.sp.file.Datasync(), "extent %s: sync grain tables", f.e.Name)
}

// Thaw tells that everything frozen is durable: tables may be evicted, and freed grains wait for Reclaim.
func (f *Frozen) Thaw() {
	s := f.e.sp
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range f.tables {
		s.tables[t.i].Load().flushing--
	}
	s.alloc.durable(f.freed)
}

// CheckEntry tells whether an entry could be set for a grain: the grain exists, and its place is a whole one inside the
// file and behind the metadata.
func (e *Extent) CheckEntry(g int64, sector uint32) error {
	s := e.sp
	if g < 0 || g >= ceilDiv(s.sectors, s.grain) {
		return fault.New(fault.Damaged, "", "extent %s has no grain %d", e.Name, g)
	}
	if sector > 1 && (uint64(sector) < s.h.overHead || int64(sector)+s.grain > roundUp(s.alloc.end, s.grain)) {
		return fault.New(fault.Damaged, "", "extent %s: sector %d is no place for a grain", e.Name, sector)
	}
	return nil
}
