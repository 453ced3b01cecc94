package vmdk

import (
	"encoding/binary"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
)

// Behind the directory of a COWD extent come tables and grains in the order in which they were needed. There is no second copy of
// anything.
const (
	cowdTableSectors = cowdEntries * 4 / SectorSize
	cowdOffFree      = 28   // byte of freeSector
	cowdOffUnclean   = 1648 // byte of uncleanShutdown
)

// cowdMap is what Check and Repair know of a COWD extent.
type cowdMap struct {
	name                   string
	file                   fsx.File
	start, size            int64 // byte of the disk; bytes of the file
	version                uint32
	capacity, grain, gdOff int64
	free, directories      int64
	unclean                bool
	gd                     []uint32
	meta                   *metadata // header, directory, tables
	used                   *placeSet // these and the grains
	stored                 int64     // sectors of grains
}

// decodeCOWD reads the numbers of a header; nil if it is none.
func decodeCOWD(b []byte) *cowdMap {
	le := binary.LittleEndian
	if len(b) < cowdDirectory*SectorSize || le.Uint32(b) != magicCOWD {
		return nil
	}
	return &cowdMap{version: le.Uint32(b[4:]), capacity: int64(le.Uint32(b[12:])), grain: int64(le.Uint32(b[16:])),
		gdOff: int64(le.Uint32(b[20:])), directories: int64(le.Uint32(b[24:])), free: int64(le.Uint32(b[cowdOffFree:])), unclean: le.Uint32(b[cowdOffUnclean:]) != 0,
		used: newPlaceSet()}
}

func (m *cowdMap) grainOK() bool {
	return m.grain >= 1 && m.grain <= maxGrainSectors && m.grain&(m.grain-1) == 0
}
func (m *cowdMap) coverage() int64 { return cowdEntries * m.grain }
func (m *cowdMap) numGTs() int64   { return ceilDiv(m.capacity, m.coverage()) }

// cowd examines a COWD extent.
func (c *checker) cowd(f fsx.File, x ExtentLine, start, size int64) error {
	whole := max(x.Sectors, 0) * SectorSize
	fatal := func(code Code, remedy, format string, args ...any) {
		c.add(code, Fatal, x.Name, start, whole, remedy, format, args...)
	}
	m, err := readCOWD(f, x.Name, start, size)
	if err != nil {
		return c.finding(err, ExtentDamaged, x.Name)
	}
	if m == nil {
		fatal(ExtentDamaged, "Run vmdkctl repair: the header can be rebuilt if the directory is where it always is",
			"sector 0 is not the header of a COWD extent")
		return nil
	}
	bad := len(c.r.Problems)
	if m.version != 1 {
		fatal(BadVersion, "", "COWD version %d is not 1", m.version)
	}
	if !m.grainOK() {
		fatal(BadGrainSize, "Run vmdkctl repair", "grain size %d is not a power of two from 1 to %d sectors", m.grain, maxGrainSectors)
	}
	if m.capacity == 0 {
		fatal(BadCapacity, "Run vmdkctl repair", "the capacity is 0")
	}
	if len(c.r.Problems) > bad {
		return nil
	}
	if int64(m.capacity) != x.Sectors && x.Sectors >= 0 {
		sev := Fatal
		if m.capacity > x.Sectors {
			sev = Warning
		}
		c.add(CapacityDiffers, sev, x.Name, start, whole, "Run vmdkctl repair",
			"the header maps %d sectors, the descriptor says %d", m.capacity, x.Sectors)
		if sev == Fatal {
			return nil
		}
	}
	if ok, err := m.readDirectory(); err != nil || !ok {
		fatal(DirectoryBeyondEnd, "Run vmdkctl repair", "the directory at sector %d is outside the file", m.gdOff)
		return c.finding(err, DirectoryBeyondEnd, x.Name)
	}
	if m.directories < m.numGTs() {
		fatal(DirectoryBeyondEnd, "Run vmdkctl repair", "the directory has %d entries, the capacity needs %d", m.directories, m.numGTs())
	}
	if m.unclean {
		c.add(UncleanShutdown, Warning, x.Name, start, whole, "Run vmdkctl repair, or attach it once", "the extent is open for writing, or was not closed")
	}
	return c.cowdTables(m)
}

// readCOWD reads the header; nil if there is none.
func readCOWD(f fsx.File, name string, start, size int64) (*cowdMap, error) {
	b := make([]byte, cowdDirectory*SectorSize)
	if err := readFull(f, b, 0); err != nil {
		return nil, err
	}
	m := decodeCOWD(b)
	if m != nil {
		m.name, m.file, m.start, m.size = name, f, start, size
	}
	return m, nil
}

// readDirectory reads the directory; false if it is not in the file.
func (m *cowdMap) readDirectory() (bool, error) {
	n := m.numGTs()
	if m.gdOff < 1 || (m.gdOff+gdSectors(n))*SectorSize > roundUp(m.size, SectorSize) {
		return false, nil
	}
	b := make([]byte, n*4)
	if err := readFull(m.file, b, m.gdOff*SectorSize); err != nil {
		return false, err
	}
	m.gd = decodeEntries(b)
	m.meta = &metadata{length: cowdTableSectors, fixed: []span{{0, cowdDirectory}, {m.gdOff, m.gdOff + gdSectors(n)}}}
	return true, nil
}

// findTables takes the places of the tables, and tells which entries of the directory name none: those are 0 afterwards. Of two
// tables in one place the first keeps it.
func (m *cowdMap) findTables() map[int]Code {
	bad := map[int]Code{}
	for i, v := range m.gd {
		if v != 0 && (int64(v)+cowdTableSectors)*SectorSize > m.size {
			bad[i], m.gd[i] = TableBeyondEnd, 0
		}
	}
	for _, v := range m.gd {
		if v != 0 {
			m.meta.tables = append(m.meta.tables, v)
		}
	}
	slices.Sort(m.meta.tables)
	conflict := m.meta.overlapping()
	kept := &metadata{length: cowdTableSectors, fixed: m.meta.fixed}
	m.meta.tables = m.meta.tables[:0]
	for i, v := range m.gd {
		switch {
		case v == 0:
			continue
		case conflict[v] && kept.holds(int64(v), cowdTableSectors):
			bad[i], m.gd[i] = MetadataOverlaps, 0
			continue
		case conflict[v]:
			at, _ := slices.BinarySearch(kept.tables, v)
			kept.tables = slices.Insert(kept.tables, at, v)
		}
		m.meta.tables = append(m.meta.tables, v)
		m.used.add(int64(v), cowdTableSectors)
	}
	slices.Sort(m.meta.tables)
	for _, f := range m.meta.fixed {
		m.used.add(f.from, f.to-f.from)
	}
	return bad
}

// table reads a table; nil where there is none.
func (m *cowdMap) table(at uint32) ([]uint32, error) {
	if at == 0 {
		return nil, nil
	}
	b := make([]byte, cowdEntries*4)
	err := readFull(m.file, b, int64(at)*SectorSize)
	return decodeEntries(b), err
}

// guest is the range of the disk of count grains.
func (m *cowdMap) guest(g, count int64) (off, n int64) {
	gb := m.grain * SectorSize
	return m.start + g*gb, max(0, min(count*gb, m.capacity*SectorSize-g*gb))
}

// wrong is why an entry names no place of a grain.
func (m *cowdMap) wrong(g int64, v uint32) Code {
	switch at := int64(v); {
	case v == 0:
		return ""
	case g*m.grain >= m.capacity:
		return GrainBeyondCapacity
	case at*SectorSize >= m.size:
		return GrainBeyondEnd
	case m.meta.holds(at, m.grain):
		return GrainInMetadata
	}
	return ""
}

// cowdTables examines the directory, then every table, then the pointer to free space.
func (c *checker) cowdTables(m *cowdMap) error {
	add := func(code Code, sev Severity, g, n int64, remedy, format string, args ...any) {
		off, length := m.guest(g, n)
		c.add(code, sev, m.name, off, length, remedy, format, args...)
	}
	was := slices.Clone(m.gd)
	bad := m.findTables()
	for i, v := range was {
		if code, ok := bad[i]; ok {
			sev := map[Code]Severity{TableBeyondEnd: Fatal, MetadataOverlaps: Error}[code]
			add(code, sev, int64(i)*cowdEntries, cowdEntries, "Restore the extent; vmdkctl repair gives the table up",
				"grain table %d is said to be at sector %d", i, v)
		}
	}
	collided := map[uint32]bool{}
	err := m.walk(c, func(g int64, v uint32) {
		switch code := m.wrong(g, v); code {
		case "":
			m.stored += m.grain
			if !m.used.add(int64(v), m.grain) && len(collided) < maxProblems {
				collided[v] = true
			}
			if _, n := m.guest(g, 1); int64(v)*SectorSize+n > m.size {
				add(GrainCutOff, Warning, g, 1, "Run vmdkctl repair to extend the file with zeros if the rest was never written",
					"the file ends inside grain %d", g)
			}
		case GrainBeyondCapacity:
			add(code, Error, g, 1, "Run vmdkctl repair: the entry is cleared", "grain %d lies behind the capacity", g)
		default:
			add(code, Error, g, 1, "Run vmdkctl repair: the content is lost", "grain %d is said to be at sector %d, where no grain can be", g, v)
		}
	})
	if err != nil {
		return err
	}
	if len(collided) > 0 {
		err = m.walk(c, func(g int64, v uint32) {
			if m.wrong(g, v) != "" {
				return
			}
			for w := range collided {
				if d := int64(v) - int64(w); d > -m.grain && d < m.grain {
					add(GrainShared, Error, g, 1, "Find out whose content it is; vmdkctl repair gives each a place of its own",
						"grain %d is at sector %d, where another grain is", g, v)
					return
				}
			}
		})
	}
	c.r.Allocated += m.stored * SectorSize
	if top := m.used.top; m.free < top {
		c.add(FreeSectorLow, Error, m.name, 0, 0, "Run vmdkctl repair before anything else writes",
			"the header says that sector %d is free, but %d are in use: the next write would overwrite data", m.free, top)
	}
	return err
}

// walk visits every entry that is not 0.
func (m *cowdMap) walk(c *checker, visit func(g int64, v uint32)) error {
	for i, at := range m.gd {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		gt, err := m.table(at)
		if err != nil {
			return c.finding(err, TableBeyondEnd, m.name)
		}
		for j, v := range gt {
			if v != 0 {
				visit(int64(i)*cowdEntries+int64(j), v)
			}
		}
	}
	return nil
}
