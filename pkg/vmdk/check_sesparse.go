package vmdk

import (
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
)

// Layout of an SESparse extent, decoded from files of ESXi (docs/format.md). Sizes and offsets are sectors.
const (
	seVersion       = 0x0000000200000001
	seVolatileMagic = 0xcafecafe
	seGrainSectors  = 8
	seTableEntries  = 4096
	seTableSectors  = 64
	seSlotSectors   = 25 // a transaction of the journal: a header and up to 24 sectors
	seSlotMagic     = 0xc0ffee
	seMaxJournal    = 64 << 10 // sectors that are looked at; files of ESXi have 2048
)

// seRegions are the areas of the file, by the place of their offset in the header; a size follows each.
var seRegions = []struct {
	name string
	at   int
}{{"volatile header", 80}, {"journal header", 96}, {"journal", 112}, {"grain directory", 128}, {"grain tables", 144},
	{"free bitmap", 160}, {"backmap", 176}, {"grains", 192}}

const (
	seVolatile = iota
	seJournalHeader
	seJournal
	seDirectory
	seTables
	seBitmap
	seBackmap
	seGrains
)

// seMap is what Check knows of an SESparse extent.
type seMap struct {
	name        string
	file        fsx.File
	start, size int64
	capacity    int64
	region      [8]span
	replayed    map[int64][]byte // sectors that the journal holds and the extent does not, yet
	used        *placeSet        // grains of the file that entries name
	freeTable   uint64           // the first table that was never used
}

// sesparse examines an SESparse extent as it is when its journal is applied.
func (c *checker) sesparse(f fsx.File, x ExtentLine, start, size int64) error {
	m := &seMap{name: x.Name, file: f, start: start, size: size, used: newPlaceSet()}
	ok, err := c.seHeader(m, x)
	if err != nil || !ok {
		return err
	}
	pending, err := c.seVolatile(m)
	if err != nil {
		return err
	}
	if pending {
		if err := m.replay(); err != nil {
			return err
		}
		c.add(JournalPending, Warning, x.Name, start, x.Sectors*SectorSize, "Convert it: the journal is applied in memory when it is read",
			"the journal holds %d sectors that must be applied before the tables are right: the extent was not closed", len(m.replayed))
	}
	return c.seTables(m)
}

// seHeader reads the constant header; false if nothing can be done with it.
func (c *checker) seHeader(m *seMap, x ExtentLine) (bool, error) {
	whole := max(x.Sectors, 0) * SectorSize
	bad := len(c.r.Problems)
	fatal := func(code Code, format string, args ...any) {
		c.add(code, Fatal, m.name, m.start, whole, "Restore the extent", format, args...)
	}
	b := make([]byte, SectorSize)
	if err := readFull(m.file, b, 0); err != nil {
		return false, c.finding(err, ExtentDamaged, m.name)
	}
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	if u64(0) != magicSESparse {
		fatal(ExtentDamaged, "sector 0 is not the header of an SESparse extent")
		return false, nil
	}
	if u64(8) != seVersion {
		fatal(BadVersion, "SESparse version %#x is not %#x", u64(8), uint64(seVersion))
	}
	if u64(24) != seGrainSectors {
		fatal(BadGrainSize, "grain size %d is not %d sectors", u64(24), seGrainSectors)
	}
	if u64(32) != seTableSectors {
		fatal(BadTableSize, "tables of %d sectors, not %d", u64(32), seTableSectors)
	}
	if u64(16) == 0 || u64(16) > uint64(MaxCapacity/SectorSize) {
		fatal(BadCapacity, "capacity %d sectors is not in 1..%d", u64(16), MaxCapacity/SectorSize)
	}
	m.findRegions(b, func(r string, off, n uint64) {
		fatal(DirectoryBeyondEnd, "the %s at sector %d of %d sectors is outside the file", r, off, n)
	})
	if len(c.r.Problems) > bad {
		return false, nil
	}
	m.capacity = int64(u64(16))
	if x.Sectors >= 0 && m.capacity != x.Sectors {
		sev := map[bool]Severity{true: Fatal, false: Warning}[m.capacity < x.Sectors]
		c.add(CapacityDiffers, sev, m.name, m.start, whole, "Convert it: the header is right",
			"the header maps %d sectors, the descriptor says %d", m.capacity, x.Sectors)
	}
	tables := ceilDiv(m.capacity, seTableEntries*seGrainSectors)
	for i, need := range map[int]int64{seDirectory: ceilDiv(tables*8, SectorSize), seBitmap: 1, seBackmap: 1, seTables: 1} {
		if m.region[i].to-m.region[i].from < need {
			fatal(DirectoryBeyondEnd, "the %s has %d sectors, the capacity needs %d", seRegions[i].name, m.region[i].to-m.region[i].from, need)
		}
	}
	for i, a := range m.region {
		for j, b := range m.region[:i] {
			if a.from < b.to && b.from < a.to {
				fatal(MetadataOverlaps, "the %s and the %s overlap", seRegions[j].name, seRegions[i].name)
			}
		}
	}
	return len(c.r.Problems) == bad || !slices.ContainsFunc(c.r.Problems[bad:], func(p Problem) bool { return p.Severity == Fatal }), nil
}

// findRegions takes the areas of the file from the header; outside is told of one that does not lie in the file.
func (m *seMap) findRegions(b []byte, outside func(name string, off, n uint64)) {
	for i, r := range seRegions {
		off, n := binary.LittleEndian.Uint64(b[r.at:]), binary.LittleEndian.Uint64(b[r.at+8:])
		limit := uint64(ceilDiv(m.size, SectorSize))
		most := limit
		if i == seGrains { // they are added when they are needed
			limit, most = max(limit, off), 1<<46
		}
		from := min(off, limit)
		m.region[i] = span{int64(from), int64(from + min(n, most))}
		if off == 0 || off > limit || i != seGrains && n > limit-off {
			outside(r.name, off, n)
		}
	}
}

// seVolatile reads the volatile header, and tells whether the journal must be applied.
func (c *checker) seVolatile(m *seMap) (pending bool, err error) {
	b := make([]byte, SectorSize)
	if err := readFull(m.file, b, m.region[seVolatile].from*SectorSize); err != nil {
		return false, err
	}
	if binary.LittleEndian.Uint64(b) != seVolatileMagic {
		c.add(ExtentDamaged, Fatal, m.name, m.start, m.capacity*SectorSize, "Restore the extent", "the volatile header is not there")
		return false, nil
	}
	m.freeTable = binary.LittleEndian.Uint64(b[8:])
	return binary.LittleEndian.Uint64(b[24:]) != 0, nil
}

// replay collects the sectors of all good transactions, in their order. The checksum of a transaction is not known: one is good
// if its numbers are, and all its targets are metadata.
func (m *seMap) replay() error {
	type slot struct{ seq, at uint64 }
	var slots []slot
	j := m.region[seJournal]
	b := make([]byte, SectorSize)
	le := binary.LittleEndian
	for k := int64(0); j.from+(k+1)*seSlotSectors <= min(j.to, j.from+seMaxJournal); k++ {
		at := j.from + k*seSlotSectors
		if err := readFull(m.file, b, at*SectorSize); err != nil {
			return err
		}
		if le.Uint64(b) != seSlotMagic || le.Uint64(b[16:]) != uint64(k) || le.Uint64(b[24:]) < 1 || le.Uint64(b[24:]) > seSlotSectors || !m.targets(b) {
			continue
		}
		slots = append(slots, slot{le.Uint64(b[40:]), uint64(at)})
	}
	slices.SortFunc(slots, func(a, b slot) int {
		if a.seq < b.seq {
			return -1
		}
		return 1
	})
	m.replayed = map[int64][]byte{}
	for _, s := range slots {
		if err := readFull(m.file, b, int64(s.at)*SectorSize); err != nil {
			return err
		}
		for k := range int64(le.Uint64(b[24:])) - 1 {
			image := make([]byte, SectorSize)
			if err := readFull(m.file, image, (int64(s.at)+1+k)*SectorSize); err != nil {
				return err
			}
			m.replayed[int64(le.Uint64(b[0x80+k*16:]))] = image
		}
	}
	return nil
}

// targets tells that every target of a transaction is a sector of the metadata that transactions change.
func (m *seMap) targets(b []byte) bool {
	for k := range int64(binary.LittleEndian.Uint64(b[24:])) - 1 {
		t := binary.LittleEndian.Uint64(b[0x80+k*16:])
		if !slices.ContainsFunc(m.region[seDirectory:seGrains], func(r span) bool { return t >= uint64(r.from) && t < uint64(r.to) }) {
			return false
		}
	}
	return true
}

// read reads metadata as they are when the journal is applied; what lies behind the end of the file is zeros.
func (m *seMap) read(p []byte, off int64) error {
	n, err := m.file.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(p[n:])
	for s := off / SectorSize; len(m.replayed) > 0 && s*SectorSize < off+int64(len(p)); s++ {
		if b := m.replayed[s]; b != nil {
			lo, hi := max(off, s*SectorSize), min(off+int64(len(p)), (s+1)*SectorSize)
			copy(p[lo-off:hi-off], b[lo-s*SectorSize:])
		}
	}
	return nil
}

func (m *seMap) guest(g, n int64) (off, length int64) {
	return m.start + g*seGrainSectors*SectorSize, max(0, min(n*seGrainSectors, m.capacity-g*seGrainSectors)*SectorSize)
}

// rotate is the 60-bit form in which entries hold a number; unrotate its inverse.
func rotate(n uint64) uint64   { return n&0xfff<<48 | n>>12 }
func unrotate(e uint64) uint64 { return e>>48&0xfff | e&0xffffffffffff<<12 }

// seTables examines directory, tables, bitmap and backmap, and whether they agree.
func (c *checker) seTables(m *seMap) error {
	tables := ceilDiv(m.capacity, seTableEntries*seGrainSectors)
	gd := make([]byte, tables*8)
	if err := m.read(gd, m.region[seDirectory].from*SectorSize); err != nil {
		return err
	}
	seen := newPlaceSet()
	table := make([]byte, seTableEntries*8)
	for i := range tables {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		e := binary.LittleEndian.Uint64(gd[i*8:])
		if e == 0 {
			continue
		}
		off, n := m.guest(i*seTableEntries, seTableEntries)
		index, at := uint32(e), m.region[seTables].from+int64(uint32(e))*seTableSectors
		switch {
		case e>>32 != 0x10000000:
			c.add(EntryUnknown, Error, m.name, off, n, "Restore the extent", "directory entry %d is %#x, which means nothing", i, e)
			continue
		case at+seTableSectors > m.region[seTables].to:
			c.add(TableBeyondEnd, Fatal, m.name, off, n, "Restore the extent", "grain table %d is said to be number %d, outside its area", i, index)
			continue
		case seen.has(int64(index), 1):
			c.add(MetadataOverlaps, Error, m.name, off, n, "Restore the extent", "grain table %d is number %d, as another one", i, index)
			continue
		case uint64(index) >= m.freeTable:
			c.add(FreeTableLow, Error, m.name, off, n, "Convert it",
				"grain table %d is number %d, but the volatile header says that %d is free: the next new table would overwrite it", i, index, m.freeTable)
		}
		seen.add(int64(index), 1)
		if err := m.read(table, at*SectorSize); err != nil {
			return err
		}
		for j := range int64(seTableEntries) {
			if e := binary.LittleEndian.Uint64(table[j*8:]); e != 0 {
				if err := c.seEntry(m, i*seTableEntries+j, e); err != nil {
					return err
				}
			}
		}
	}
	c.r.Allocated += m.used.count * seGrainSectors * SectorSize
	return c.seBitmap(m)
}

// seEntry examines a table entry that is not 0.
func (c *checker) seEntry(m *seMap, g int64, e uint64) error {
	off, n := m.guest(g, 1)
	add := func(code Code, format string, args ...any) {
		c.add(code, Error, m.name, off, n, "Convert what is readable", format, args...)
	}
	switch e >> 60 {
	case 1, 2: // unmapped by the guest, or zeros
		return nil
	case 3:
	default:
		add(EntryUnknown, "the entry of grain %d is %#x, which means nothing", g, e)
		return nil
	}
	index := int64(unrotate(e))
	at := m.region[seGrains].from + index*seGrainSectors
	switch {
	case g*seGrainSectors >= m.capacity:
		add(GrainBeyondCapacity, "grain %d lies behind the capacity", g)
		return nil
	case at+seGrainSectors > m.region[seGrains].to, at*SectorSize >= m.size:
		add(GrainBeyondEnd, "grain %d is said to be number %d, outside its area or the file", g, index)
		return nil
	case at*SectorSize+n > m.size:
		c.add(GrainCutOff, Warning, m.name, off, n, "Convert it", "the file ends inside grain %d", g)
	}
	if !m.used.add(index, 1) {
		add(GrainShared, "grain %d is number %d, as another one", g, index)
		return nil
	}
	var b [8]byte
	back := m.region[seBackmap].from*SectorSize + index*8
	if back+8 > m.region[seBackmap].to*SectorSize {
		add(BackmapDiffers, "the backmap does not reach to number %d of grain %d", index, g)
		return nil
	}
	if err := m.read(b[:], back); err != nil {
		return err
	}
	if v := binary.LittleEndian.Uint64(b[:]); v>>60 != 1 || unrotate(v&(1<<60-1)) != uint64(g) {
		add(BackmapDiffers, "grain %d is number %d, whose backmap entry is %#x", g, index, v)
	}
	return nil
}

// seBitmap compares the bitmap with the grains in use: 64 at a time, because which bit of a word is which grain is not known.
func (c *checker) seBitmap(m *seMap) error {
	b := make([]byte, placePage/8)
	for _, k := range slices.Sorted(mapKeys(m.used)) {
		if err := m.read(b, m.region[seBitmap].from*SectorSize+k*placePage/8); err != nil {
			return err
		}
		for w := range int64(placeWords) {
			used := m.used.word(k, w)
			if free := bits.OnesCount64(used) - bits.OnesCount64(binary.LittleEndian.Uint64(b[w*8:])); free > 0 {
				c.add(BitmapDiffers, Error, m.name, 0, 0, "Convert it",
					"of the grains of the file from number %d on %d are in use and free in the bitmap: new ones would overwrite them",
					k*placePage+w*64, free)
			}
		}
	}
	return nil
}
