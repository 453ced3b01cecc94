package vmdktest

import (
	"encoding/binary"
	"os"
)

// sparseHeader is what sector 0 of a hosted sparse extent says (Virtual Disk Format 5.0, "Hosted Sparse Extent Header").
type sparseHeader struct {
	version, flags                            uint32
	capacity, grain, descOff, descSize        uint64
	entries                                   uint32
	redundant, directory, overhead, fileBytes uint64
}

// sparse judges a sparse extent: header, both directories, all tables, and where the grains lie.
func (l *linter) sparse(f *os.File, e extent) {
	b := make([]byte, sector)
	st, err := f.Stat()
	if err == nil {
		_, err = f.ReadAt(b, 0)
	}
	if err != nil {
		l.add("%s: %v", e.name, err)
		return
	}
	le := binary.LittleEndian
	h := sparseHeader{version: le.Uint32(b[4:]), flags: le.Uint32(b[8:]), capacity: le.Uint64(b[12:]), grain: le.Uint64(b[20:]),
		descOff: le.Uint64(b[28:]), descSize: le.Uint64(b[36:]), entries: le.Uint32(b[44:]), redundant: le.Uint64(b[48:]),
		directory: le.Uint64(b[56:]), overhead: le.Uint64(b[64:]), fileBytes: uint64(st.Size())}
	zeroGrains := h.flags&4 != 0
	switch {
	case string(b[:4]) != "KDMV":
		l.add("%s: magic %q", e.name, b[:4])
		return
	case h.version != 1 && !zeroGrains || h.version > 2 || h.version == 0:
		l.add("%s: header version %d, flags %#x: 1 unless grains of zeros need 2", e.name, h.version, h.flags)
	case h.flags&^4 != 3:
		l.add("%s: flags %#x", e.name, h.flags)
	case b[72] != 0:
		l.add("%s: uncleanShutdown is set", e.name)
	case string(b[73:77]) != "\n \r\n":
		l.add("%s: line ends % x", e.name, b[73:77])
	case le.Uint16(b[77:]) != 0:
		l.add("%s: compressed", e.name)
	case h.grain == 0 || h.grain&(h.grain-1) != 0 || h.grain < 8:
		l.add("%s: grain of %d sectors", e.name, h.grain)
		return
	case h.entries != entries:
		l.add("%s: %d entries in a table", e.name, h.entries)
		return
	case h.capacity != uint64(e.sectors):
		l.add("%s: header says %d sectors, its line %d", e.name, h.capacity, e.sectors)
		return
	case h.overhead%h.grain != 0 || h.overhead*sector > h.fileBytes:
		l.add("%s: %d sectors of metadata, grain %d, %d bytes", e.name, h.overhead, h.grain, h.fileBytes)
		return
	}
	l.tables(f, e.name, h, zeroGrains)
}

// tables: all of them are there, twice, and equal; each grain is in the file, aligned, behind the metadata, and nobody else's.
func (l *linter) tables(f *os.File, name string, h sparseHeader, zeroGrains bool) {
	cover := h.grain * entries
	n := (h.capacity + cover - 1) / cover
	a, err := words(f, h.directory, n)
	b, err2 := words(f, h.redundant, n)
	if err != nil || err2 != nil {
		l.add("%s: directories: %v %v", name, err, err2)
		return
	}
	owner := map[uint32]uint64{}
	for i := range n {
		if a[i] == 0 || b[i] == 0 || a[i] == b[i] {
			l.add("%s: table %d is at sectors %d and %d", name, i, a[i], b[i])
			continue
		}
		one, err := words(f, uint64(a[i]), entries)
		two, err2 := words(f, uint64(b[i]), entries)
		if err != nil || err2 != nil {
			l.add("%s: table %d: %v %v", name, i, err, err2)
			continue
		}
		for j, at := range one {
			g := i*entries + uint64(j)
			switch {
			case at != two[j]:
				l.add("%s: grain %d is at %d and at %d", name, g, at, two[j])
			case at == 0:
			case g*h.grain >= h.capacity:
				l.add("%s: grain %d is behind the capacity", name, g)
			case at == 1 && zeroGrains:
			case uint64(at) < h.overhead || uint64(at)%h.grain != 0 || uint64(at)*sector >= h.fileBytes:
				l.add("%s: grain %d is at sector %d of %d, metadata ends at %d", name, g, at, h.fileBytes/sector, h.overhead)
			default:
				if other, taken := owner[at]; taken {
					l.add("%s: grains %d and %d are both at sector %d", name, other, g, at)
				}
				owner[at] = g
			}
		}
	}
}

func words(f *os.File, at, n uint64) ([]uint32, error) {
	b := make([]byte, n*4)
	if _, err := f.ReadAt(b, int64(at)*sector); err != nil {
		return nil, err
	}
	w := make([]uint32, n)
	for i := range w {
		w[i] = binary.LittleEndian.Uint32(b[i*4:])
	}
	return w, nil
}
