package vmdk

import (
	"errors"
)

// entries repairs what the grain tables say. A first walk collects the places on which table and copy agree; a second one
// decides about every entry that is wrong, and writes: 1. grains that got a place of their own, at the end of the file, sync;
// 2. the redundant tables; 3. the tables; both durable before the mark is taken off (end).
func (e *extentRepair) entries() error {
	if err := e.claim(); err != nil {
		return e.r.skip(err)
	}
	e.next = max(e.next, roundUp(e.t.used.top, e.s.grain))
	var gts, rgts []mendedTable
	for i := range e.s.gd {
		if err := e.r.ctx.Err(); err != nil {
			return err
		}
		if e.s.gd[i] <= 1 { // there is no table to write
			continue
		}
		gt, rgt, err := e.pair(int64(i))
		if err != nil {
			return e.r.skip(err)
		}
		a, b, err := e.table(int64(i), gt, rgt)
		if err != nil {
			return err
		}
		if a {
			gts = append(gts, mendedTable{e.s.gd[i], gt})
		}
		if b {
			rgts = append(rgts, mendedTable{e.s.rgd[i], rgt})
		}
	}
	if err := e.cutOff(); err != nil {
		return err
	}
	if len(gts)+len(rgts) == 0 {
		return nil
	}
	err := errors.Join(e.begin(), e.s.file.Datasync())
	for _, m := range append(rgts, gts...) {
		if err == nil {
			err = m.write(e.s)
		}
	}
	return errors.Join(err, e.s.file.Datasync())
}

// mendedTable is a table as it will be.
type mendedTable struct {
	at      uint32
	entries []uint32
}

// write writes the sectors that changed.
func (m *mendedTable) write(s *sparse) error {
	old, err := s.readTable(m.at)
	if err != nil {
		return err
	}
	for _, at := range diffSectors(encodeEntries(old), encodeEntries(m.entries)) {
		if _, err := s.file.WriteAt(encodeEntries(m.entries[at/4:min(at/4+SectorSize/4, len(m.entries))]), int64(m.at)*SectorSize+int64(at)); err != nil {
			return err
		}
	}
	return nil
}

// pair reads table i and its copy; rgt is nil if there is none.
func (e *extentRepair) pair(i int64) (gt, rgt []uint32, err error) {
	if gt, err = e.s.readTable(e.s.gd[i]); err != nil {
		return nil, nil, err
	}
	if e.s.rgd != nil && e.s.rgd[i] > 1 {
		rgt, err = e.s.readTable(e.s.rgd[i])
	}
	return gt, rgt, err
}

// claim notes the places on which both copies agree; after them, those that one copy names where the other names none; at
// last, the grains whose place no copy can tell from another grain's.
func (e *extentRepair) claim() error {
	e.owner = map[uint32]int64{}
	for _, agreed := range []bool{true, false} {
		err := e.walk(func(g int64, x, y uint32) {
			switch v := max(x, y); {
			case v <= 1 || e.t.wrong(g, v) != "":
			case agreed && x == y && !e.t.used.add(v):
				e.collide(v)
			case !agreed && x != y && min(x, y) == 0 && !e.taken(g, v, "") && e.t.used.add(v):
				e.owner[v] = g
			}
		})
		if err != nil {
			return err
		}
	}
	err := e.walk(func(g int64, x, y uint32) {
		if x != y {
			if how, v := e.weigh(g, x, y); how == sharedPlace {
				e.collide(v)
			}
		}
	})
	if err != nil {
		return err
	}
	e.shared, err = e.t.sharing(func(visit func(int64, uint32)) error {
		return e.walk(func(g int64, x, y uint32) {
			if how, v := e.weigh(g, x, y); x == y || how == sharedPlace {
				visit(g, v)
			}
		})
	})
	return err
}

func (e *extentRepair) collide(v uint32) {
	if len(e.t.collided) < maxProblems {
		e.t.collided[v] = struct{}{}
	}
}

// walk visits every entry and its copy.
func (e *extentRepair) walk(visit func(g int64, x, y uint32)) error {
	for i := range e.s.gd {
		gt, rgt, err := e.pair(int64(i))
		if err != nil {
			return err
		}
		for j, x := range gt {
			y := x
			if rgt != nil {
				y = rgt[j]
			}
			visit(int64(i)*int64(e.s.h.gtes)+int64(j), x, y)
		}
	}
	return nil
}

// weighed is what an entry and its copy say about a grain, together.
type weighed int

const (
	placed      weighed = iota // it is there
	conflicting                // each could be right
	sharedPlace                // it is where another grain is
	hopeless                   // neither names a place
)

// weigh compares an entry and its copy.
func (e *extentRepair) weigh(g int64, x, y uint32) (weighed, uint32) {
	wx, wy := e.t.wrong(g, x), e.t.wrong(g, y)
	goodX, goodY := wx == "" && !e.taken(g, x, wx), wy == "" && !e.taken(g, y, wy)
	switch {
	case x == y && wx == "":
		return placed, x
	case goodX && goodY:
		return conflicting, x
	case goodX && (x != 0 || wy != ""):
		return placed, x
	case goodY && (y != 0 || wx != ""):
		return placed, y
	case wx == "" && x != 0: // a place that both have is no reason to forget it
		return sharedPlace, x
	case wy == "" && y != 0:
		return sharedPlace, y
	}
	return hopeless, x
}

// table decides about the entries of a table, and tells which copy changed.
func (e *extentRepair) table(i int64, gt, rgt []uint32) (a, b bool, err error) {
	for j := range gt {
		g := i*int64(e.s.h.gtes) + int64(j)
		x := gt[j]
		y := x
		if rgt != nil {
			y = rgt[j]
		}
		v, ok, err := e.decide(g, x, y)
		if err != nil {
			return false, false, err
		}
		if !ok {
			continue
		}
		if v != x {
			gt[j], a = v, true
		}
		if rgt != nil && v != y {
			rgt[j], b = v, true
		}
	}
	return a, b, nil
}

// decide is the entry that both copies must have for grain g, where the table says x and its copy y; ok is false if
// they are left as they are.
func (e *extentRepair) decide(g int64, x, y uint32) (v uint32, ok bool, err error) {
	if x == y {
		if x == 0 {
			return 0, false, nil
		}
		return e.mendEntry(g, x, e.t.wrong(g, x))
	}
	r := e.r
	wx, wy := e.t.wrong(g, x), e.t.wrong(g, y)
	if !r.asked(TableCopiesDiffer) && (wx == "" || !r.asked(wx)) && (!e.taken(g, x, wx) || !r.asked(GrainShared)) {
		return 0, false, nil
	}
	how, v := e.weigh(g, x, y)
	switch how {
	case conflicting:
		if v, ok = e.choose(g, x, y); !ok {
			return 0, false, nil
		}
	case sharedPlace:
		if !r.asked(GrainShared) {
			return 0, false, nil
		}
		to, moved, err := e.move(g, v)
		if !moved {
			to = v
		}
		return to, true, err
	case hopeless:
		return e.mendEntry(g, x, orDefault(wx, wy))
	}
	if o, ok := e.owner[v]; v > 1 && (!ok || o != g) && !e.t.used.add(v) {
		return e.mendEntry(g, v, "")
	}
	if v == 0 && x != 0 && wx != GrainBeyondCapacity {
		off, n := e.t.guest(g, 1)
		r.lost(TableCopiesDiffer, e.s.name, off, n, "the table named a wrong place, its copy none: nothing is stored here now")
	}
	if v != x && wx != GrainBeyondCapacity {
		r.res.Content = true
	}
	r.did(TableCopiesDiffer, e.s.name, 1, "table and copy are made equal: the entry that is right in one of them")
	return v, true, nil
}

// taken tells that another grain has this place.
func (e *extentRepair) taken(g int64, v uint32, wrong Code) bool {
	if v <= 1 || wrong != "" {
		return false
	}
	if o, ok := e.owner[v]; ok && o == g {
		return false
	}
	n := e.s.grain
	return e.t.used.taken(int64(v)/n) || int64(v)%n != 0 && e.t.used.taken(int64(v)/n+1) || e.t.used.near(int64(v))
}

// choose is between two entries of which each could be right. Where one names no place it is the other: a crash or a peer
// that wrote one copy only. Else, in an extent that was not closed, the table's (see Recover); else whoever asks decides.
func (e *extentRepair) choose(g int64, x, y uint32) (uint32, bool) {
	r := e.r
	switch {
	case x == 0:
		return y, true
	case y == 0, e.s.h.unclean:
		return x, true
	case r.p.Prefer == "":
		return 0, false
	}
	off, n := e.t.guest(g, 1)
	r.lost(TableCopiesDiffer, e.s.name, off, n, "table and copy name different places, sectors %d and %d; the %s one was taken", x, y, r.p.Prefer)
	if r.p.Prefer == PreferRedundant {
		return y, true
	}
	return x, true
}

// mendEntry repairs an entry that no other copy can put right.
func (e *extentRepair) mendEntry(g int64, v uint32, wrong Code) (uint32, bool, error) {
	r := e.r
	off, n := e.t.guest(g, 1)
	switch wrong {
	case "":
		return e.move(g, v)
	case GrainBeyondCapacity:
		if !r.asked(wrong) {
			return 0, false, nil
		}
		r.did(wrong, e.s.name, 1, "the entry is cleared")
		return 0, true, nil
	}
	if !r.asked(wrong) || !r.p.Loss {
		return 0, false, nil
	}
	r.res.Content = true
	if wrong == ZeroEntryNoFlag {
		r.lost(wrong, e.s.name, off, n, "marked as zeros without the flag that allows it, and reads as zeros now")
		if r.desc.IsChild() {
			e.zeroFlag()
			return v, true, nil
		}
		r.did(wrong, e.s.name, 1, "the entry is cleared: zeros in a base")
		return 0, true, nil
	}
	r.lost(wrong, e.s.name, off, n, "where the grain is is lost; it reads as zeros now")
	if !r.desc.IsChild() {
		r.did(wrong, e.s.name, 1, "the entry is cleared: zeros in a base")
		return 0, true, nil
	}
	r.did(wrong, e.s.name, 1, "a grain of zeros takes its place, so that the parent's old content does not appear")
	at, err := e.add(e.s.grain)
	return uint32(at), true, err
}

// zeroFlag allows entries of 1.
func (e *extentRepair) zeroFlag() {
	e.r.did(ZeroEntryNoFlag, e.s.name, 1, "the header allows grains of zeros")
	h := *e.s.h
	h.flags |= flagZeroGrain
	h.version = max(h.version, 2)
	e.s.h = &h
	e.dirty = true
}

// move gives a grain a place of its own if it shares one, or lies where VMware puts none.
func (e *extentRepair) move(g int64, v uint32) (uint32, bool, error) {
	if v <= 1 {
		return 0, false, nil
	}
	r := e.r
	code, what := GrainUnaligned, "the grain is moved to a multiple of the grain size"
	move := int64(v)%e.s.grain != 0 && r.asked(GrainUnaligned)
	other := neighbour(e.shared, namedGrain{g, v}, e.s.grain)
	if other >= 0 && !r.asked(GrainShared) {
		return 0, false, nil // moving it would hide that it is shared
	}
	if other >= 0 {
		off, n := e.t.guest(g, 1)
		r.lost(GrainShared, e.s.name, off, n, "grain %d had its place in common with grain %d; one of them has the other's content", g, other)
		if !e.keep(v) {
			code, what, move = GrainShared, "the grain is copied to a place of its own", true
		}
	}
	if !move {
		return 0, false, nil
	}
	at, err := e.add(e.s.grain)
	if err == nil {
		err = e.s.file.Clone(e.s.file, int64(v)*SectorSize, at*SectorSize, e.s.grain*SectorSize)
	}
	r.did(code, e.s.name, 1, "%s", what)
	return uint32(at), true, err
}

// keep tells that no grain before this one kept the place that both name.
func (e *extentRepair) keep(v uint32) bool {
	for _, k := range e.kept {
		if d := int64(k) - int64(v); d > -e.s.grain && d < e.s.grain {
			return false
		}
	}
	e.kept = append(e.kept, v)
	return true
}

// cutOff extends a file that ends inside a grain.
func (e *extentRepair) cutOff() error {
	info, err := e.s.file.Stat()
	end := e.t.used.top * SectorSize
	if err != nil || info.Size >= end || !e.r.asked(GrainCutOff) {
		return err
	}
	e.r.did(GrainCutOff, e.s.name, 1, "the file is extended with zeros")
	return errors.Join(e.begin(), e.s.file.Truncate(end))
}
