package vmdktest

import (
	"encoding/binary"
	"os"
)

const cowdEntries = 4096

// cowd judges a COWD extent (Virtual Disk Format 5.0, "ESX Server Sparse Extents"): header, directory, tables, and that the
// first free sector is behind everything that is in use.
func (l *linter) cowd(f *os.File, e extent) {
	le := binary.LittleEndian
	st, err := f.Stat()
	if err != nil {
		l.add("%s: %v", e.name, err)
		return
	}
	all := func(at, n int64) []byte { // zeros behind the end
		b := make([]byte, n)
		_, _ = f.ReadAt(b, at)
		return b
	}
	b := all(0, 2048)
	grain, free, directory := int64(le.Uint32(b[16:])), int64(le.Uint32(b[28:])), int64(le.Uint32(b[20:]))
	if string(b[:4]) != "COWD" || le.Uint32(b[4:]) != 1 || le.Uint32(b[8:]) != 3 || grain == 0 || grain > 2048 || grain&(grain-1) != 0 {
		l.add("%s: header % x", e.name, b[:32])
		return
	}
	tables := (e.sectors + cowdEntries*grain - 1) / (cowdEntries * grain)
	switch {
	case int64(le.Uint32(b[12:])) != e.sectors:
		l.add("%s: header says %d sectors, its line %d", e.name, le.Uint32(b[12:]), e.sectors)
	case int64(le.Uint32(b[24:])) != tables:
		l.add("%s: %d tables, %d are needed", e.name, le.Uint32(b[24:]), tables)
	case le.Uint32(b[1648:]) != 0:
		l.add("%s: uncleanShutdown is set", e.name)
	case free*sector != st.Size():
		l.add("%s: the first free sector is %d in a file of %d bytes", e.name, free, st.Size())
	}
	used := map[int64]bool{}
	take := func(what string, at, n int64) {
		if at < 4 || at+n > free {
			l.add("%s: %s at sector %d, the first free one is %d", e.name, what, at, free)
			return
		}
		for i := range n {
			if used[at+i] {
				l.add("%s: %s at sector %d lies on something else", e.name, what, at)
				return
			}
			used[at+i] = true
		}
	}
	take("the directory", directory, (tables*4+sector-1)/sector)
	dir := all(directory*sector, tables*4)
	for i := range tables {
		at := int64(le.Uint32(dir[i*4:]))
		if at == 0 {
			continue
		}
		take("a table", at, cowdEntries*4/sector)
		table := all(at*sector, cowdEntries*4)
		for j := range int64(cowdEntries) {
			v := int64(le.Uint32(table[j*4:]))
			if v != 0 && (i*cowdEntries+j)*grain >= e.sectors {
				l.add("%s: entry %d of table %d is behind the capacity", e.name, j, i)
			} else if v != 0 {
				take("a grain", v, grain)
			}
		}
	}
}
