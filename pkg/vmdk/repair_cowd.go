package vmdk

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
)

// cowdRepair plans the repair of one COWD extent. It has no second copy of anything: what no entry names rightly is lost.
type cowdRepair struct {
	r    *repairer
	m    *cowdMap
	next int64 // first sector for what is added
	kept []uint32
	free bool // the header's pointer to free space must be written
}

// cowd repairs a COWD extent: 1. header, 2. grains that get a place of their own, at the end, sync, 3. entries, sync, 4. the
// pointer to free space and the mark.
func (r *repairer) cowd(x *ExtentLine, start int64) error {
	f, err := r.o.Open(x.Name, fsx.ReadWrite)
	if err != nil {
		return r.skip(err)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	m, err := r.cowdHeader(f, x, start, info.Size)
	if err != nil || m == nil {
		return r.skip(err)
	}
	e := &cowdRepair{r: r, m: m}
	if err := e.tables(); err != nil {
		return err
	}
	shared, err := e.sharing()
	if err != nil {
		return r.skip(err)
	}
	e.next = max(m.used.top, ceilDiv(info.Size, SectorSize)) // not by what the header says, which may be anything
	if err := e.entries(shared); err != nil {
		return err
	}
	return e.end(x, info.Size)
}

// put writes a number of the header, each in one sector.
func (m *cowdMap) put(off int64, v uint32) error {
	_, err := m.file.WriteAt(binary.LittleEndian.AppendUint32(nil, v), off)
	return err
}

// cowdHeader reads the header and mends what is asked; nil if nothing can be done with it.
func (r *repairer) cowdHeader(f fsx.File, x *ExtentLine, start, size int64) (*cowdMap, error) {
	m, err := readCOWD(f, x.Name, start, size)
	if err != nil {
		return nil, err
	}
	if m == nil || !m.grainOK() || m.capacity == 0 {
		code := ExtentDamaged
		if m != nil {
			code = BadGrainSize
			if m.capacity == 0 {
				code = BadCapacity
			}
		}
		if !r.asked(code) {
			return nil, nil
		}
		return r.rebuildCOWD(f, x, start, size, code)
	}
	if m.version != 1 {
		return nil, nil
	}
	if err := r.cowdCapacity(m, x.Sectors); err != nil {
		return nil, err
	}
	if m.capacity < x.Sectors {
		return nil, nil
	}
	if m.directories < m.numGTs() && r.asked(DirectoryBeyondEnd) {
		to := *m
		if to.used = newPlaceSet(); to.coherent() {
			r.did(DirectoryBeyondEnd, x.Name, 1, "the header says how many entries the directory has")
			if err := errors.Join(m.put(24, uint32(m.numGTs())), f.Datasync()); err != nil {
				return nil, err
			}
		}
	}
	ok, err := m.readDirectory()
	if err == nil && !ok && r.asked(DirectoryBeyondEnd) {
		to := *m
		if to.gdOff, to.used = cowdDirectory, newPlaceSet(); !to.coherent() {
			return nil, nil
		}
		r.did(DirectoryBeyondEnd, x.Name, 1, "the directory is found where the format puts it")
		m.gdOff = cowdDirectory
		if err := errors.Join(m.put(20, cowdDirectory), f.Datasync()); err != nil {
			return nil, err
		}
		ok, err = m.readDirectory()
	}
	if !ok {
		return nil, err
	}
	return m, err
}

// cowdCapacity makes the header say what the descriptor says, if everything in the extent is right then.
func (r *repairer) cowdCapacity(m *cowdMap, sectors int64) error {
	to := *m
	to.capacity, to.used = sectors, newPlaceSet()
	if m.capacity == sectors || !r.asked(CapacityDiffers) || !to.coherent() {
		return nil
	}
	r.did(CapacityDiffers, m.name, 1, "the header says %d sectors as the descriptor", sectors)
	m.capacity, m.directories = sectors, to.numGTs()
	return errors.Join(m.put(12, uint32(sectors)), m.put(24, uint32(to.numGTs())), m.file.Datasync())
}

// coherent tells that with these numbers every entry of the extent is right; it must not be used afterwards.
func (m *cowdMap) coherent() bool {
	if ok, err := m.readDirectory(); err != nil || !ok || len(m.findTables()) > 0 {
		return false
	}
	for i, at := range m.gd {
		gt, err := m.table(at)
		if err != nil {
			return false
		}
		for j, v := range gt {
			if v != 0 && (m.wrong(int64(i)*cowdEntries+int64(j), v) != "" || !m.used.add(int64(v), m.grain)) {
				return false
			}
		}
	}
	return true
}

// rebuildCOWD makes a header of what must be true: the directory follows it, the capacity is the line's, and the grain size is
// the one with which everything is right. What is ambiguous is left alone.
func (r *repairer) rebuildCOWD(f fsx.File, x *ExtentLine, start, size int64, code Code) (*cowdMap, error) {
	var found []*cowdMap
	for grain := int64(1); grain <= maxGrainSectors; grain *= 2 {
		m := &cowdMap{name: x.Name, file: f, start: start, size: size, version: 1, capacity: x.Sectors, grain: grain, gdOff: cowdDirectory, used: newPlaceSet()}
		if m.coherent() && m.used.top*SectorSize <= roundUp(size, SectorSize) && m.used.dense(cowdDirectory) {
			found = append(found, m)
		}
	}
	if len(found) != 1 {
		return nil, nil
	}
	m := found[0]
	b := make([]byte, cowdDirectory*SectorSize)
	le := binary.LittleEndian
	for _, v := range []struct {
		at int
		v  int64
	}{{0, magicCOWD}, {4, 1}, {8, 3}, {12, m.capacity}, {16, m.grain}, {20, m.gdOff}, {24, m.numGTs()}, {28, m.used.top}} {
		le.PutUint32(b[v.at:], uint32(v.v))
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return nil, err
	}
	r.did(code, x.Name, 1, "the header is rebuilt: grains of %d sectors", m.grain)
	next, err := readCOWD(f, x.Name, start, size)
	if err == nil {
		_, err = next.readDirectory()
	}
	return next, errors.Join(err, f.Datasync())
}

// dense tells that from a sector to the top everything is taken: the file grows without gaps.
func (p *placeSet) dense(from int64) bool { return p.count >= p.top-from && p.count > 0 }

// tables gives up those whose place is wrong.
func (e *cowdRepair) tables() error {
	m, r := e.m, e.r
	was := slices.Clone(m.gd)
	bad := m.findTables()
	for i := range was {
		code, ok := bad[i]
		if !ok || !r.asked(code) || !r.p.Loss {
			continue
		}
		off, n := m.guest(int64(i)*cowdEntries, cowdEntries)
		r.lost(code, m.name, off, n, "grain table %d is lost; the parent's content appears, or zeros", i)
		r.did(code, m.name, 1, "the directory entry is cleared")
		r.res.Content = true
		if err := m.put(m.gdOff*SectorSize+int64(i)*4, 0); err != nil {
			return err
		}
	}
	return m.file.Datasync()
}

// sharing are the grains that are where another one is.
func (e *cowdRepair) sharing() (map[int64]bool, error) {
	m := e.m
	var places []namedGrain
	c := &checker{ctx: e.r.ctx}
	err := m.walk(c, func(g int64, v uint32) {
		if m.wrong(g, v) == "" && !m.used.add(int64(v), m.grain) && len(places) < maxProblems {
			places = append(places, namedGrain{g, v})
		}
	})
	shared := map[int64]bool{}
	if err != nil || len(places) == 0 {
		return shared, err
	}
	return shared, m.walk(c, func(g int64, v uint32) {
		for _, p := range places {
			if d := int64(v) - int64(p.v); m.wrong(g, v) == "" && d > -m.grain && d < m.grain {
				shared[g] = true
			}
		}
	})
}

func (e *cowdRepair) entries(shared map[int64]bool) error {
	m := e.m
	type mended struct {
		at int64
		v  uint32
	}
	var writes []mended
	for i, at := range m.gd {
		gt, err := m.table(at)
		if err != nil {
			return e.r.skip(err)
		}
		for j, v := range gt {
			if v == 0 {
				continue
			}
			w, ok, err := e.decide(int64(i)*cowdEntries+int64(j), v, shared)
			if err != nil {
				return err
			}
			if ok {
				writes = append(writes, mended{int64(at)*SectorSize + int64(j)*4, w})
			}
		}
	}
	if len(writes) == 0 {
		return nil
	}
	err := m.file.Datasync()
	for _, w := range writes {
		if err == nil {
			err = m.put(w.at, w.v)
		}
	}
	return errors.Join(err, m.file.Datasync())
}

// decide is what the entry of a grain must be; ok is false if it is left alone.
func (e *cowdRepair) decide(g int64, v uint32, shared map[int64]bool) (uint32, bool, error) {
	m, r := e.m, e.r
	off, n := m.guest(g, 1)
	switch code := m.wrong(g, v); {
	case code == GrainBeyondCapacity && r.asked(code):
		r.did(code, m.name, 1, "the entry is cleared")
		return 0, true, nil
	case code != "" && code != GrainBeyondCapacity && r.asked(code) && r.p.Loss:
		r.lost(code, m.name, off, n, "where the grain is is lost; it reads as zeros now")
		r.res.Content = true
		if !r.desc.IsChild() {
			r.did(code, m.name, 1, "the entry is cleared: zeros in a base")
			return 0, true, nil
		}
		r.did(code, m.name, 1, "a grain of zeros takes its place, so that the parent's old content does not appear")
		at, err := e.add()
		return uint32(at), true, err
	case code == "" && shared[g] && r.asked(GrainShared):
		r.lost(GrainShared, m.name, off, n, "the grain had its place in common with another; one of them has the other's content")
		if e.keep(v) {
			return 0, false, nil
		}
		r.did(GrainShared, m.name, 1, "the grain is copied to a place of its own")
		at, err := e.add()
		if err == nil {
			err = m.file.Clone(m.file, int64(v)*SectorSize, at*SectorSize, m.grain*SectorSize)
		}
		return uint32(at), true, err
	}
	return 0, false, nil
}

func (e *cowdRepair) keep(v uint32) bool {
	for _, k := range e.kept {
		if d := int64(k) - int64(v); d > -e.m.grain && d < e.m.grain {
			return false
		}
	}
	e.kept = append(e.kept, v)
	return true
}

// add hands out a grain at the end of the file.
func (e *cowdRepair) add() (int64, error) {
	at := e.next
	e.next += e.m.grain
	e.free = true
	return at, e.m.file.Truncate(e.next * SectorSize)
}

func (e *cowdRepair) end(x *ExtentLine, size int64) error {
	m, r := e.m, e.r
	top := m.used.top
	if !e.free && size < top*SectorSize && r.asked(GrainCutOff) {
		r.did(GrainCutOff, x.Name, 1, "the file is extended with zeros")
		if err := m.file.Truncate(top * SectorSize); err != nil {
			return err
		}
	}
	if m.free < top && r.asked(FreeSectorLow) {
		r.did(FreeSectorLow, x.Name, 1, "the header names the first sector behind everything in use")
		e.free = true
	}
	if e.free {
		if err := errors.Join(m.file.Datasync(), m.put(cowdOffFree, uint32(max(top, m.free, e.next))), m.file.Datasync()); err != nil {
			return err
		}
	}
	if !m.unclean || !r.asked(UncleanShutdown) {
		return nil
	}
	c := &checker{ctx: r.ctx, d: r.o, name: r.name}
	if err := c.extent(*x, m.start); err != nil || !c.r.Sound() {
		return err
	}
	r.did(UncleanShutdown, x.Name, 1, "everything was looked at, and the mark is taken off")
	return errors.Join(m.put(cowdOffUnclean, 0), m.file.Datasync())
}
