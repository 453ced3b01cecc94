package vmdk

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"sync/atomic"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// GrowParams say how large a link becomes and how.
type GrowParams struct {
	Capacity   int64  // bytes, a multiple of 512, more than the link has
	Format     Format // flat types: how the new space is taken; default Thin
	ExtentSize int64  // split types: most bytes per extent; default what the link's first extents show
	Resume     bool   // as in CreateParams, for new extents
	Progress   func(done, total int64)
}

// Growth is a growth whose space is ready and which nobody sees yet.
type Growth struct {
	l     *Link
	m     *maker
	lines []ExtentLine // all extents as they will be
	fresh []*Extent    // the new ones, open
}

// Grow makes the link larger. Nothing else may use it meanwhile.
//
// Protocol: 1. flat: extend the last file behind its end, sync; split: fill the last extent, make further ones as Create
// does, sync, sync the directory. [A crash leaves a file that is longer than its line, or files nobody names.]
// 2. sparse: write a new directory and new tables at the end of the file, sync. [A crash leaks them.]
// What another program left behind the end in the last grain becomes zeros, sync. 3. sparse: one header sector with offsets and capacity, sync. [A crash leaves a header that promises more than the
// descriptor; the line rules.] 4. descriptor: temporary file, sync, rename, directory sync: the commit point.
// Repeating it after a crash anywhere finishes the work.
func (l *Link) Grow(ctx context.Context, p GrowParams) error {
	g, err := l.PrepareGrow(ctx, p)
	if err != nil {
		return err
	}
	return g.Commit()
}

// PrepareGrow is step 1 of Grow. It may run while the link is read and written.
func (l *Link) PrepareGrow(ctx context.Context, p GrowParams) (*Growth, error) {
	lines, from, err := l.planGrow(&p)
	if err == nil {
		err = l.unsure // the descriptor on disk may name what step 1 would cut off or replace
	}
	if err != nil {
		return nil, fault.Wrap(err, "grow %s to %d bytes", l.Name, p.Capacity)
	}
	g := &Growth{l: l, lines: lines, m: &maker{ctx: ctx, d: l.dir, p: &CreateParams{Capacity: p.Capacity - l.Size(), Type: l.desc.Load().Type(),
		Format: orDefault(p.Format, Thin), GrainSectors: l.grainSectors(), Resume: p.Resume, Progress: p.Progress}}}
	if err := g.prepare(from); err != nil {
		return nil, fault.Wrap(errors.Join(err, g.Undo()), "grow %s to %d bytes", l.Name, p.Capacity)
	}
	return g, nil
}

// planGrow is the list of extents after the growth, and the index of the first new one.
func (l *Link) planGrow(p *GrowParams) ([]ExtentLine, int, error) {
	d := l.desc.Load()
	t := d.Type()
	lines := d.Extents()
	last := &lines[len(lines)-1]
	limit := MaxCapacity
	switch t {
	case MonolithicSparse, VMFSSparse:
		limit = MaxSparseExtent
	case TwoGbMaxExtentFlat, TwoGbMaxExtentSparse:
		limit = maxSplitFlat
		if t.Sparse() {
			limit = MaxSparseExtent
		}
		if len(lines) > 1 {
			limit = lines[0].Sectors * SectorSize
		}
		limit = orDefault(p.ExtentSize, limit)
	case MonolithicFlat, VMFS:
	default:
		return nil, 0, unsupportedType("growth of type", string(t))
	}
	if p.Capacity <= l.Size() || p.Capacity > MaxCapacity || p.Capacity%SectorSize != 0 {
		return nil, 0, fault.New(fault.OutOfRange, "", "the size must be a multiple of 512, more than %d and at most %d bytes", l.Size(), MaxCapacity)
	}
	if grain := l.grainSectors() * SectorSize; limit < 1<<20 || limit%grain != 0 || t.Sparse() && limit > MaxSparseExtent {
		return nil, 0, fault.New(fault.OutOfRange, "", "extent size %d is not a multiple of the grain from 1 MiB to %d bytes", limit, MaxSparseExtent)
	}
	add := p.Capacity - l.Size()
	if room := limit - last.Sectors*SectorSize; room > 0 {
		last.Sectors += min(add, room) / SectorSize
		add -= min(add, room)
	}
	from := len(lines)
	if add > 0 {
		if !t.Split() {
			return nil, 0, fault.New(fault.OutOfRange, "convert the disk to a split type", "a %s disk holds at most %d bytes", t, limit)
		}
		if add/limit+int64(from) >= maxExtents {
			return nil, 0, fault.New(fault.OutOfRange, "use larger extents", "more than %d extents would be needed", maxExtents)
		}
		lines = append(lines, extentLines(strings.TrimSuffix(l.Name, ".vmdk"), l.Name, t, from, add, limit)...)
	}
	return lines, from, nil
}

// grainSectors is the grain size of the link's last extent, which new ones have too.
func (l *Link) grainSectors() int64 {
	if sp := l.extents[len(l.extents)-1].sp; sp != nil {
		return sp.grain
	}
	return DefaultGrainSectors
}

func (g *Growth) prepare(from int) error {
	if err := g.m.checkFree(); err != nil {
		return err
	}
	if g.m.p.Format == EagerZeroedThick {
		g.m.total = g.m.p.Capacity
	}
	last := g.l.extents[from-1]
	if last.Kind == Flat {
		if err := g.growFlat(last, last.base+g.lines[from-1].Sectors*SectorSize); err != nil {
			return err
		}
	}
	start := last.Start + g.lines[from-1].Sectors*SectorSize
	for i, x := range g.lines[from:] {
		if err := g.m.extent(x); err != nil {
			return err
		}
		e := &Extent{Index: from + i, Name: x.Name, Start: start, Len: x.Sectors * SectorSize}
		start = e.End()
		g.fresh = append(g.fresh, e)
		if err := g.l.openExtent(e, x); err != nil {
			return err
		}
	}
	if len(g.fresh) == 0 {
		return nil
	}
	return g.l.dir.Sync()
}

// growFlat extends the file of an extent to a size. Bytes behind the extent are left-overs of a growth that was cut off.
func (g *Growth) growFlat(e *Extent, to int64) (err error) {
	from := e.base + e.Len
	if to <= from {
		return nil
	}
	flag := fsx.ReadWrite
	if g.m.p.Format == EagerZeroedThick {
		flag |= fsx.Direct
	}
	f, err := g.l.dir.Open(e.Name, flag)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size > from {
		if err := f.Truncate(from); err != nil {
			return err
		}
	}
	if err := g.m.flatSpace(f, from, to); err != nil {
		return errors.Join(fault.Wrap(err, "extent %s", e.Name), f.Truncate(from))
	}
	return nil
}

// Undo gives up a growth that was not committed: the new extents are removed. What a flat file got stays behind its end.
func (g *Growth) Undo() error {
	var errs []error
	for _, e := range g.fresh {
		errs = append(errs, e.close())
	}
	return errors.Join(append(errs, g.m.undo())...)
}

// Commit is steps 2 to 4 of Grow. No request may be under way, and nothing dirty.
func (g *Growth) Commit() error {
	l := g.l
	last := l.extents[len(l.extents)-1]
	sectors := g.lines[last.Index].Sectors
	if err := last.zeroTail(sectors * SectorSize); err != nil {
		return fault.Wrap(errors.Join(err, g.Undo()), "grow %s", l.Name)
	}
	if last.Kind == Sparse && sectors > last.sp.sectors {
		if err := last.sp.growTables(sectors); err != nil {
			return fault.Wrap(errors.Join(err, g.Undo()), "grow %s", l.Name)
		}
	}
	next := l.Descriptor()
	err := next.SetExtents(g.lines)
	if err == nil {
		err = next.setGeometry()
	}
	if err == nil {
		err = l.store(next, true)
	}
	if err != nil {
		// Whether the new descriptor is there is not known: the new extents must stay.
		for _, e := range g.fresh {
			err = errors.Join(err, e.close())
		}
		return fault.Wrap(err, "grow %s", l.Name)
	}
	last.Len = sectors * SectorSize
	if last.sp != nil {
		last.sp.sectors = sectors
	}
	l.extents = append(l.extents, g.fresh...)
	return nil
}

// zeroTail makes durable zeros of what the last grain has behind the end of an extent that becomes larger. There may be something where
// another program wrote the grain: qemu 7.2 fills it from the wrong place of a parent (block/vmdk.c, get_whole_grain).
func (e *Extent) zeroTail(size int64) error {
	if e.Kind != Sparse || size <= e.Len || e.Len%e.GrainBytes() == 0 {
		return nil
	}
	r, err := e.Run(e.Len-1, 1)
	if err != nil || r.State != Allocated {
		return err
	}
	tail := make([]byte, e.GrainBytes()-e.Len%e.GrainBytes())
	if err := e.ReadFile(tail, r.Offset+1); err != nil || allZeros(tail) {
		return err
	}
	return errors.Join(e.ZeroFile(r.Offset+1, int64(len(tail)), false), e.SyncData())
}

// growTables makes the extent map sectors of guest space: steps 2 and 3 of Grow. The new directory names the tables that
// are there and new ones behind it; the old directory is left where it is, unused.
func (s *sparse) growTables(sectors int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := *s.h
	h.capacity = uint64(sectors)
	gd, rgd := s.gd, s.rgd
	n := h.numGTs()
	switch {
	case h.cowd != nil:
		var err error
		if gd, err = s.growCowd(&h); err != nil {
			return err
		}
	case n > int64(len(s.gd)):
		dir, tables := gdSectors(n), (n-int64(len(s.gd)))*h.gtSectors()
		copies := int64(1)
		if s.rgd != nil {
			copies = 2
		}
		at, err := s.alloc.metadata(copies * (dir + tables))
		if err != nil {
			return err
		}
		if s.rgd != nil {
			h.rgdOff = uint64(at)
			if rgd, err = s.writeDirectory(at, dir, s.rgd, n); err != nil {
				return err
			}
			at += dir + tables
		}
		h.gdOff = uint64(at)
		if gd, err = s.writeDirectory(at, dir, s.gd, n); err != nil {
			return err
		}
		if err := s.file.Datasync(); err != nil {
			return fault.Wrap(err, "extent %s: sync new tables", s.name)
		}
	}
	old := s.h
	s.h = &h
	if err := s.writeHeader(); err != nil {
		s.h = old
		return err
	}
	tables := make([]atomic.Pointer[table], len(gd))
	for i := range s.tables {
		tables[i].Store(s.tables[i].Load())
	}
	s.gd, s.rgd, s.tables = gd, rgd, tables
	return nil
}

// writeDirectory writes a directory of n tables at a sector: the old ones, and new ones that follow the directory.
func (s *sparse) writeDirectory(at, dir int64, old []uint32, n int64) ([]uint32, error) {
	d := append([]uint32(nil), old...)
	if s.h.cowd != nil { // its tables are made when they are needed
		d = append(d, make([]uint32, n-int64(len(d)))...)
	}
	for next := at + dir; int64(len(d)) < n; next += s.h.gtSectors() {
		d = append(d, uint32(next))
	}
	b := make([]byte, dir*SectorSize)
	for i, v := range d {
		binary.LittleEndian.PutUint32(b[i*4:], v)
	}
	_, err := s.file.WriteAt(b, at*SectorSize)
	return d, fault.Wrap(err, "extent %s: write new directory", s.name)
}
