package vmdk

import "slices"

// metadata is where the directories and tables of an extent lie, in sectors.
type metadata struct {
	tables []uint32 // first sectors, ascending
	length int64    // of a table
	fixed  []span   // header, descriptor, directories
}

type span struct{ from, to int64 }

// mostTables bounds what the map of the metadata costs, far above any real disk (128 TiB in default grains).
const mostTables = 1 << 22

func newMetadata(s *sparse) *metadata {
	m := &metadata{length: s.h.gtSectors()}
	dir := gdSectors(s.h.numGTs())
	m.fixed = []span{{0, 1}, {int64(s.h.gdOff), int64(s.h.gdOff) + dir}}
	if s.rgd != nil {
		m.fixed = append(m.fixed, span{int64(s.h.rgdOff), int64(s.h.rgdOff) + dir})
	}
	if s.h.descOff != 0 {
		m.fixed = append(m.fixed, span{int64(s.h.descOff), int64(s.h.descOff + s.h.descSize)})
	}
	for _, d := range [][]uint32{s.gd, s.rgd} {
		for _, v := range d {
			if v > 1 && len(m.tables) < mostTables {
				m.tables = append(m.tables, v)
			}
		}
	}
	slices.Sort(m.tables)
	return m
}

// holds tells that some of n sectors are metadata.
func (m *metadata) holds(at, n int64) bool {
	for _, f := range m.fixed {
		if at < f.to && at+n > f.from {
			return true
		}
	}
	i, _ := slices.BinarySearchFunc(m.tables, at-m.length+1, func(v uint32, x int64) int { return int(int64(v) - x) })
	return i < len(m.tables) && int64(m.tables[i]) < at+n
}

// overlapping are the tables that lie on other tables, or on header, descriptor or directories.
func (m *metadata) overlapping() map[uint32]bool {
	out := map[uint32]bool{}
	for i, v := range m.tables {
		if len(out) > maxProblems {
			break
		}
		if i > 0 && int64(v) < int64(m.tables[i-1])+m.length {
			out[v], out[m.tables[i-1]] = true, true
		}
		for _, f := range m.fixed {
			if int64(v) < f.to && int64(v)+m.length > f.from {
				out[v] = true
			}
		}
	}
	return out
}

// clash tells that some metadata lie on other metadata.
func (m *metadata) clash() bool {
	for i, a := range m.fixed {
		for _, b := range m.fixed[:i] {
			if a.from < b.to && b.from < a.to {
				return true
			}
		}
	}
	return len(m.overlapping()) > 0
}

// overlaps reports directories and tables that lie on each other. A directory whose tables are those of its copy is
// odd, but right as long as nobody writes.
func (t *tableChecker) overlaps() {
	bad := t.meta.overlapping()
	if t.s.rgd != nil && t.s.h.rgdOff == t.s.h.gdOff {
		t.c.add(MetadataOverlaps, Warning, t.s.name, 0, 0, "Run vmdkctl repair", "both directories are the same")
		return
	}
	if f := t.meta.fixed; len(bad) == 0 && len(f) < 2 {
		return
	}
	for i, a := range t.meta.fixed {
		for _, b := range t.meta.fixed[:i] {
			if a.from < b.to && b.from < a.to {
				t.c.add(MetadataOverlaps, Error, t.s.name, t.start, t.s.sectors*SectorSize, "Run vmdkctl repair: the header may be wrong",
					"metadata at sectors %d..%d and %d..%d overlap", b.from, b.to-1, a.from, a.to-1)
			}
		}
	}
	if len(bad) == 0 {
		return
	}
	for i, v := range t.s.gd {
		w := uint32(0)
		if t.s.rgd != nil {
			w = t.s.rgd[i]
		}
		for _, at := range []uint32{v, w} {
			if bad[at] && at > 1 {
				off, n := t.guest(int64(i)*int64(t.s.h.gtes), int64(t.s.h.gtes))
				t.c.add(MetadataOverlaps, Error, t.s.name, off, n, "Run vmdkctl repair: the other copy may be right",
					"grain table %d at sector %d lies on other metadata", i, at)
			}
		}
	}
}
