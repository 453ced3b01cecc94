package vmdk

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
)

func encodeEntries(e []uint32) []byte {
	b := make([]byte, len(e)*4)
	for i, v := range e {
		binary.LittleEndian.PutUint32(b[i*4:], v)
	}
	return b
}

// extentRepair plans the repair of the tables of one sparse extent.
type extentRepair struct {
	r      *repairer
	s      *sparse
	t      *tableChecker
	start  int64
	next   int64 // first sector for what is added
	begun  bool  // the extent is marked unclean
	dirty  bool  // its header must be written
	meta   *metadata
	owner  map[uint32]int64 // of places that only one copy names
	shared []namedGrain     // grains that share a place, by place
	kept   []uint32         // places that one of them kept
	named  []namedTable     // tables that are written, and wait for their directory entries
}

type namedTable struct {
	dir uint64
	i   int64
	at  uint32
}

// sparse repairs the tables of an extent whose header is good.
func (r *repairer) sparse(x *ExtentLine, start int64) error {
	f, err := r.o.Open(x.Name, fsx.ReadWrite)
	if err != nil {
		return r.skip(err)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if h := r.streamHeader(f); h != nil {
		return r.stream(f, h, x, start, info.Size)
	}
	h := r.goodHeader(x.Name)
	if h == nil {
		return nil
	}
	s := &sparse{name: x.Name, file: f, h: h, grain: int64(h.grain), sectors: min(x.Sectors, int64(h.capacity))}
	s.alloc.init(s, info.Size)
	e := &extentRepair{r: r, s: s, start: start, next: s.alloc.next}
	if s.gd, err = e.directory(h.gdOff); err == nil && h.redundant() {
		s.rgd, err = e.directory(h.rgdOff)
	}
	if err != nil {
		return r.skip(err)
	}
	if err := e.capacity(x); err != nil {
		return err
	}
	if err := e.tables(info.Size); err != nil {
		return err
	}
	e.t = newTableChecker(nil, s, start, info.Size)
	if !e.t.meta.clash() { // else an entry of one table may be one of another
		if err := e.entries(); err != nil {
			return err
		}
	}
	return e.end(x)
}

func (e *extentRepair) directory(at uint64) ([]uint32, error) {
	b := make([]byte, e.s.h.numGTs()*4)
	err := readFull(e.s.file, b, int64(at)*SectorSize)
	return decodeEntries(b), err
}

// begin marks the extent before its first change, as every writer does.
func (e *extentRepair) begin() error {
	if e.begun {
		return nil
	}
	e.begun = true
	h := *e.s.h
	h.unclean = true
	return e.r.writeHeader(e.s.file, &h)
}

// add hands out sectors at the end of the file.
func (e *extentRepair) add(n int64) (int64, error) {
	at := e.next
	e.next += roundUp(n, e.s.grain)
	return at, errors.Join(e.begin(), e.s.file.Truncate(e.next*SectorSize))
}

// end is what closes the repair of an extent: the mark, which goes only if nothing else is wrong.
func (e *extentRepair) end(x *ExtentLine) error {
	r, h := e.r, *e.s.h
	if e.begun {
		if err := e.s.file.Datasync(); err != nil {
			return err
		}
	}
	if h.unclean && r.asked(UncleanShutdown) {
		c := &checker{ctx: r.ctx, d: r.o, name: r.name}
		if err := c.extent(*x, e.start); err != nil {
			return err
		}
		differ := func(p Problem) bool { return p.Severity >= Error || p.Code == TableCopiesDiffer }
		if !slices.ContainsFunc(c.r.Problems, differ) {
			h.unclean, e.dirty = false, true
			r.did(UncleanShutdown, x.Name, 1, "everything was looked at, and the mark is taken off")
		}
	}
	if !e.begun && !e.dirty {
		return nil
	}
	return r.writeHeader(e.s.file, &h)
}

// capacity makes header and extent line agree.
func (e *extentRepair) capacity(x *ExtentLine) error {
	h, r := e.s.h, e.r
	if int64(h.capacity) == x.Sectors || !r.asked(CapacityDiffers) {
		return nil
	}
	next := *h
	next.capacity = uint64(x.Sectors)
	last := x.Name == r.name || x.Name == r.desc.Extents()[len(r.desc.Extents())-1].Name
	if int64(h.capacity) > x.Sectors {
		if e.allocatedBehind(x.Sectors) {
			if !last {
				return nil
			}
			x.Sectors, e.s.sectors = int64(h.capacity), int64(h.capacity)
			r.did(CapacityDiffers, x.Name, 1, "the descriptor says %d sectors as the header: there is data", h.capacity)
			r.res.Content = true
			return nil
		}
	} else if !e.directoryOf(&next) {
		if !r.p.Loss || !last {
			return nil
		}
		off := e.start + int64(h.capacity)*SectorSize
		r.lost(CapacityDiffers, x.Name, off, (x.Sectors-int64(h.capacity))*SectorSize, "no table maps it; the disk ends before it now")
		r.did(CapacityDiffers, x.Name, 1, "the descriptor says %d sectors as the header", h.capacity)
		x.Sectors, e.s.sectors = int64(h.capacity), int64(h.capacity)
		r.res.Content = true
		return nil
	}
	r.did(CapacityDiffers, x.Name, 1, "the header says %d sectors as the descriptor", x.Sectors)
	e.s.h, e.s.sectors = &next, x.Sectors
	e.dirty = true
	var err error
	if e.s.gd, err = e.directory(next.gdOff); err == nil && next.redundant() {
		e.s.rgd, err = e.directory(next.rgdOff)
	}
	return err
}

// allocatedBehind tells that some grain behind a sector of the extent is stored.
func (e *extentRepair) allocatedBehind(sectors int64) bool {
	s := e.s
	for i := sectors / s.h.coverage(); i < int64(len(s.gd)); i++ {
		gt, err := s.readTable(s.gd[i])
		if err != nil {
			return true
		}
		for j, v := range gt {
			if g := i*int64(s.h.gtes) + int64(j); v != 0 && g*s.grain >= sectors && g*s.grain < int64(s.h.capacity) {
				return true
			}
		}
	}
	return false
}

// directoryOf tells that the directories hold the tables of a larger capacity.
func (e *extentRepair) directoryOf(h *header) bool {
	if len(h.defects(e.s.alloc.end*SectorSize)) > 0 {
		return false
	}
	for _, at := range []uint64{h.gdOff, h.rgdOff} {
		if at == h.rgdOff && !h.redundant() {
			continue
		}
		b := make([]byte, h.numGTs()*4)
		known := len(e.s.gd) * 4 // those tables are there in any case
		if readFull(e.s.file, b, int64(at)*SectorSize) != nil || string(b[known:]) != string(h.directory(at)[known:len(b)]) {
			return false
		}
	}
	return true
}

// tables gives every table that is missing, or lies where no table can, a place of its own.
func (e *extentRepair) tables(size int64) error {
	r, s := e.r, e.s
	if !r.asked(TableBeyondEnd) && !r.asked(TablesMissing) && !r.asked(MetadataOverlaps) {
		return nil
	}
	if s.rgd != nil && s.h.rgdOff == s.h.gdOff {
		return e.secondDirectory()
	}
	why := make([][2]Code, len(s.gd))
	for c, d := range [][]uint32{s.gd, s.rgd} {
		for i, v := range d {
			switch {
			case v == 1 && s.h.flags&flagZeroGrain != 0:
			case v == 0:
				why[i][c] = TablesMissing
			case v == 1, (int64(v)+s.h.gtSectors())*SectorSize > roundUp(size, SectorSize):
				why[i][c] = TableBeyondEnd
				d[i] = 0
			}
		}
	}
	over := newMetadata(s).overlapping()
	for i := range s.gd {
		for c, d := range [][]uint32{s.gd, s.rgd} {
			if d != nil && d[i] > 1 && over[d[i]] && !e.regular(c, int64(i)) {
				why[i][c] = MetadataOverlaps
				d[i] = 0
			}
		}
	}
	e.meta = newMetadata(s)
	for i := range s.gd {
		if err := e.tablePair(int64(i), why[i]); err != nil {
			return err
		}
	}
	return e.nameTables()
}

// regular tells that table i of a copy is where the format puts it: directly behind its directory.
func (e *extentRepair) regular(c int, i int64) bool {
	d, at := e.s.gd, e.s.h.gdOff
	if c == 1 {
		d, at = e.s.rgd, e.s.h.rgdOff
	}
	return int64(d[i]) == e.slot(at, i)
}

func (e *extentRepair) slot(dir uint64, i int64) int64 {
	return int64(dir) + gdSectors(e.s.h.numGTs()) + i*e.s.h.gtSectors()
}

// tablePair mends the places of table i: the content comes from the other copy, else from the regular place, else the table
// was empty, or is lost.
func (e *extentRepair) tablePair(i int64, why [2]Code) error {
	r, s := e.r, e.s
	for c, dir := range [][]uint32{s.gd, s.rgd} {
		if dir == nil || why[c] == "" || !r.asked(why[c]) {
			continue
		}
		place := e.slot([]uint64{s.h.gdOff, s.h.rgdOff}[c], i)
		if place+s.h.gtSectors() > int64(s.h.overHead) || e.meta.holds(place, s.h.gtSectors()) {
			place = 0
		}
		content, err := e.tableContent(i, c, why, place)
		if err != nil {
			return r.skip(err)
		}
		if content == nil && why[c] != TablesMissing {
			if !r.p.Loss {
				continue
			}
			off, n := (&tableChecker{s: s, start: e.start}).guest(i*int64(s.h.gtes), int64(s.h.gtes))
			r.lost(why[c], s.name, off, n, "grain table %d is lost, and with it where its grains are", i)
		}
		if content == nil {
			content = make([]uint32, s.h.gtes)
		}
		if c == 0 && (why[c] != TablesMissing || !zeros(content)) {
			r.res.Content = true
		}
		if err := e.putTable(c, i, place, content); err != nil {
			return err
		}
		r.did(why[c], s.name, 1, "a grain table gets a place of its own")
		why[c] = ""
	}
	return nil
}

// tableContent is what copy c of table i must hold; nil: nothing tells.
func (e *extentRepair) tableContent(i int64, c int, why [2]Code, place int64) ([]uint32, error) {
	other := [][]uint32{e.s.rgd, e.s.gd}[c]
	good := other != nil && other[i] > 0 && why[1-c] == ""
	var copied []uint32
	var err error
	switch {
	case good && other[i] > 1:
		copied, err = e.s.readTable(other[i])
	case good:
		copied = ones(e.s.h)
	}
	if err != nil || place == 0 {
		return copied, err
	}
	gt, err := e.s.readTable(uint32(place)) // the entry is wrong, the table may be right
	if err == nil && copied == nil && why[c] == TablesMissing && why[1-c] != TableBeyondEnd && why[1-c] != MetadataOverlaps {
		// Nothing says that there ever was one, but for two places that hold the same.
		if twin, err := e.s.readTable(uint32(e.slot([]uint64{e.s.h.rgdOff, e.s.h.gdOff}[c], i))); other == nil || err != nil || !akin(gt, twin) {
			return nil, nil //nolint:nilerr // no table there
		}
	}
	if err == nil && e.sane(i, gt) && (copied == nil || akin(gt, copied) || !e.sane(i, copied) || why[c] != TablesMissing && zeros(copied)) {
		return gt, nil
	}
	return copied, err
}

func zeros(gt []uint32) bool { return !slices.ContainsFunc(gt, func(v uint32) bool { return v != 0 }) }

// akin tells that two copies of a table are of one extent: some places are the same, and none differ.
func akin(a, b []uint32) bool {
	same := false
	for j := range a {
		if a[j] != b[j] && a[j] != 0 && b[j] != 0 {
			return false
		}
		same = same || a[j] == b[j] && a[j] > 1
	}
	return same
}

// sane tells that what lies at a regular place is a table.
func (e *extentRepair) sane(i int64, gt []uint32) bool {
	t := &tableChecker{s: e.s, size: e.s.alloc.end * SectorSize, meta: e.meta}
	for j, v := range gt {
		if t.wrong(i*int64(e.s.h.gtes)+int64(j), v) != "" {
			return false
		}
	}
	return true
}

// putTable writes a table; nameTables writes the directory entry when it is durable.
func (e *extentRepair) putTable(c int, i, place int64, content []uint32) error {
	s := e.s
	dir, off := s.gd, s.h.gdOff
	if c == 1 {
		dir, off = s.rgd, s.h.rgdOff
	}
	if err := e.begin(); err != nil {
		return err
	}
	hole := place == 0 // at the end of the file, and reads as zeros
	if hole {
		var err error
		if place, err = e.add(s.h.gtSectors()); err != nil {
			return err
		}
	}
	if !hole || !zeros(content) {
		if _, err := s.file.WriteAt(encodeEntries(content), place*SectorSize); err != nil {
			return err
		}
	}
	dir[i] = uint32(place)
	e.named = append(e.named, namedTable{off, i, uint32(place)})
	k, _ := slices.BinarySearch(e.meta.tables, uint32(place))
	e.meta.tables = slices.Insert(e.meta.tables, k, uint32(place))
	return nil
}

// nameTables puts the new tables into the directories: 1. the tables are durable, 2. the entries, 3. sync.
func (e *extentRepair) nameTables() error {
	if len(e.named) == 0 {
		return nil
	}
	err := e.s.file.Datasync()
	for _, n := range e.named {
		if err == nil {
			err = e.s.writeDirectoryEntry(n.dir, n.i, n.at)
		}
	}
	return errors.Join(err, e.s.file.Datasync())
}

// secondDirectory gives an extent whose two directories are one a second one.
func (e *extentRepair) secondDirectory() error {
	s := e.s
	if !e.r.asked(MetadataOverlaps) {
		return nil
	}
	at, err := e.r.copyDirectory(s.file, s.h, s.h.gdOff, e.next*SectorSize)
	if err != nil {
		return e.r.skip(err)
	}
	h := *s.h
	h.rgdOff = uint64(at)
	s.h = &h
	e.dirty = true
	e.next = roundUp(at+gdSectors(h.numGTs())+h.numGTs()*h.gtSectors(), s.grain)
	e.r.did(MetadataOverlaps, s.name, 1, "a redundant directory with tables is made")
	s.rgd, err = e.directory(h.rgdOff)
	return err
}
