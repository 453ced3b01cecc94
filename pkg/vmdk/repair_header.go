package vmdk

import (
	"bytes"
	"errors"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// header repairs sector 0 of extent i, and directories that lie outside the file.
func (r *repairer) header(lines []ExtentLine, i int) error {
	x := lines[i]
	f, err := r.o.Open(x.Name, fsx.ReadWrite)
	if err != nil {
		return r.skip(err)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	sector := make([]byte, SectorSize)
	if err := readFull(f, sector, 0); err != nil {
		return r.skip(err)
	}
	h, err := decodeHeader(sector)
	if err != nil {
		if fault.KindOf(err) == fault.Damaged && r.asked(ExtentDamaged) {
			return r.rebuildHeader(f, lines, i, info.Size, nil, ExtentDamaged)
		}
		return r.skip(err)
	}
	for _, d := range h.defects(info.Size) {
		if !r.asked(d.code) || h.flags&flagCompressed != 0 && d.code != TextTransfer {
			continue
		}
		switch d.code {
		case TextTransfer:
			next := *h
			next.lineEnds = goodLineEnds
			if !r.plausible(x.Name, &next, TextTransfer) {
				continue
			}
			h = &next
			r.did(TextTransfer, x.Name, 1, "the line-end bytes are restored; if the data went through a text-mode transfer, nobody can tell")
			if err := r.writeHeader(f, h); err != nil {
				return err
			}
		case BadGrainSize, BadTableSize, BadCapacity, BadOverhead:
			if err := r.rebuildHeader(f, lines, i, info.Size, h, d.code); err != nil {
				return err
			}
			return nil
		case DirectoryBeyondEnd:
			return r.findDirectories(f, x, h, info.Size)
		}
	}
	return nil
}

func (r *repairer) writeHeader(f fsx.File, h *header) error {
	_, err := f.WriteAt(h.encode(), 0)
	return errors.Join(err, f.Datasync())
}

// plausible tries a header on an overlay of its own: with it the extent must be coherent, but for a few entries.
func (r *repairer) plausible(name string, h *header, but ...Code) bool {
	o := newOverlay(r.o)
	defer o.Close()
	f, err := o.Open(name, fsx.ReadWrite)
	if err != nil || r.writeHeader(f, h) != nil {
		return false
	}
	rep, err := Check(r.ctx, o, r.name)
	return err == nil && len(rep.Problems) < 100 && !slices.ContainsFunc(rep.Problems, func(p Problem) bool {
		return p.Severity == Fatal && p.File == name && !slices.Contains(but, p.Code) && p.Code != DirectoryBeyondEnd && p.Code != TableBeyondEnd
	})
}

// rebuildHeader makes a header from what must be true of it: the directories are where the layout of the format puts them, and
// say so themselves; the grain size fits every entry. What is ambiguous is left alone.
func (r *repairer) rebuildHeader(f fsx.File, lines []ExtentLine, i int, size int64, old *header, code Code) error {
	var sibling *header
	for j := range lines {
		if j != i && lines[j].Type == "SPARSE" {
			if h := r.goodHeader(lines[j].Name); h != nil {
				sibling = h
				break
			}
		}
	}
	var h *header
	switch {
	case r.desc.Type() != StreamOptimized:
		h = r.guessHeader(f, lines[i].Sectors, size, old, sibling)
	case old == nil: // a record would be taken for a grain
		h = guessStream(f, lines[i], size)
	}
	if h == nil {
		return nil
	}
	r.did(code, lines[i].Name, 1, "the header is rebuilt from the layout: grains of %d sectors, tables of %d entries, capacity %d sectors", h.grain, h.gtes, h.capacity)
	return r.writeHeader(f, h)
}

// goodHeader is the header of an extent without defects.
func (r *repairer) goodHeader(name string) *header {
	f, err := r.o.Open(name, fsx.ReadOnly)
	if err != nil {
		return nil
	}
	info, err := f.Stat()
	b := make([]byte, SectorSize)
	if err != nil || readFull(f, b, 0) != nil {
		return nil
	}
	h, err := decodeHeader(b)
	if err != nil || len(h.defects(info.Size)) > 0 {
		return nil
	}
	return h
}

func (r *repairer) guessHeader(f fsx.File, capacity, size int64, old, sibling *header) *header {
	base := &header{version: 1, flags: flagNewLine | flagRedundant, gtes: 512, lineEnds: goodLineEnds}
	grains := []uint64{128, 8, 16, 32, 64, 256, 512, 1024, 2048}
	if old != nil {
		o := *old
		base = &o
		if old.grain >= minGrainSectors && old.grain <= maxGrainSectors && old.grain&(old.grain-1) == 0 {
			grains = []uint64{old.grain}
		}
		if old.gtes < 128 || old.gtes > 4096 || old.gtes&(old.gtes-1) != 0 {
			base.gtes = 512
		}
	}
	descSectors := []int64{0}
	if r.embedded {
		descSectors = []int64{embeddedDescSectors}
		for n := int64(1); n <= 64; n++ {
			descSectors = append(descSectors, n)
		}
	}
	var found []*header
	for _, n := range descSectors {
		for _, g := range grains {
			h := *base
			h.capacity, h.grain = uint64(capacity), g
			h.place(n)
			if h.isThere(f, size) {
				found = append(found, &h)
			}
		}
		if len(found) > 0 {
			break
		}
	}
	switch {
	case len(found) == 0:
		return nil
	case len(found) == 1:
		return found[0]
	}
	strong := slices.DeleteFunc(slices.Clone(found), func(h *header) bool { return !h.fits(f, size) })
	if len(strong) == 1 {
		return strong[0]
	}
	if sibling != nil {
		for _, h := range found {
			if h.grain == sibling.grain {
				return h
			}
		}
	}
	if len(strong) == len(found) && found[0].grain == DefaultGrainSectors && found[0].empty(f) {
		return found[0]
	}
	return nil
}

// place sets the offsets as layout does, for any table size.
func (h *header) place(descSectors int64) {
	at := int64(1)
	h.descOff, h.descSize = 0, 0
	if descSectors > 0 {
		h.descOff, h.descSize = 1, uint64(descSectors)
		at += descSectors
	}
	dir := gdSectors(h.numGTs()) + h.numGTs()*h.gtSectors()
	h.rgdOff = 0
	if h.redundant() {
		h.rgdOff = uint64(at)
		at += dir
	}
	h.gdOff = uint64(at)
	h.overHead = uint64(roundUp(at+dir, int64(h.grain)))
}

// isThere tells that the directories of the header are in the file, and name the tables behind them.
func (h *header) isThere(f fsx.File, size int64) bool {
	if len(h.defects(size)) > 0 {
		return false
	}
	for _, at := range []uint64{h.gdOff, h.rgdOff} {
		if at == 0 {
			continue
		}
		want := h.directory(at)
		got := make([]byte, h.numGTs()*4)
		if readFull(f, got, int64(at)*SectorSize) != nil || !bytes.Equal(got, want[:len(got)]) {
			return false
		}
	}
	s := h.scratch(f, size)
	t := newTableChecker(nil, s, 0, size)
	for i := range s.gd {
		gt, err := s.readTable(s.gd[i])
		if err != nil {
			return false
		}
		for j, v := range gt {
			if g := int64(i)*int64(h.gtes) + int64(j); v > 1 && (int64(v)%s.grain != 0 || t.wrong(g, v) != "" || !t.used.add(v)) {
				return false
			}
		}
	}
	return true
}

// scratch is the extent of a header, with its directories as they must be.
func (h *header) scratch(f fsx.File, size int64) *sparse {
	s := &sparse{file: f, h: h, grain: int64(h.grain), sectors: int64(h.capacity)}
	s.alloc.init(s, size)
	s.gd = decodeEntries(h.directory(h.gdOff))[:h.numGTs()]
	return s
}

// ends are the places of the first and last grain, and the shortest distance of neighbours; 0 for none.
func (h *header) ends(f fsx.File, size int64) (first, last, step int64) {
	s := h.scratch(f, size)
	var all []uint32
	for i := range s.gd {
		gt, err := s.readTable(s.gd[i])
		if err != nil {
			return 0, 0, 0
		}
		for _, v := range gt {
			if v > 1 {
				all = append(all, v)
			}
		}
	}
	if len(all) == 0 {
		return 0, 0, 0
	}
	slices.Sort(all)
	for i := 1; i < len(all); i++ {
		if d := int64(all[i]) - int64(all[i-1]); step == 0 || d < step {
			step = d
		}
	}
	return int64(all[0]), int64(all[len(all)-1]), step
}

// fits tells that the grain size is the distance of grains, and that the first one begins behind the metadata.
func (h *header) fits(f fsx.File, size int64) bool {
	first, last, step := h.ends(f, size)
	g := int64(h.grain)
	return first == 0 || first == int64(h.overHead) && (step == g || step == 0 && size == (last+g)*SectorSize)
}

func (h *header) empty(f fsx.File) bool {
	first, _, _ := h.ends(f, 0)
	return first == 0
}

// findDirectories replaces a directory that lies outside the file: by the one at the place where the format puts it, if that is
// one, or by a new copy of the other, with its tables.
func (r *repairer) findDirectories(f fsx.File, x ExtentLine, h *header, size int64) error {
	limit := uint64(size / SectorSize)
	dir := uint64(gdSectors(h.numGTs()))
	inside := func(at uint64) bool { return at != 0 && at <= limit && dir <= limit-at }
	lay := *h
	lay.place(int64(h.descSize))
	next := *h
	regular := func(at uint64) bool { // most entries are what they must be; others may be damaged too
		b := make([]byte, h.numGTs()*4)
		if !inside(at) || readFull(f, b, int64(at)*SectorSize) != nil {
			return false
		}
		same := 0
		for i, v := range decodeEntries(h.directory(at))[:h.numGTs()] {
			if v == decodeEntries(b[i*4 : i*4+4])[0] {
				same++
			}
		}
		return same > int(h.numGTs())/2
	}
	if !inside(h.gdOff) && regular(lay.gdOff) {
		next.gdOff = lay.gdOff
	}
	if h.redundant() && !inside(h.rgdOff) && regular(lay.rgdOff) {
		next.rgdOff = lay.rgdOff
	}
	what := "the directory is found where the format puts it"
	switch gd, rgd := inside(next.gdOff), !next.redundant() || inside(next.rgdOff); {
	case !gd && !rgd, !gd && !next.redundant():
		return nil
	case !gd, !rgd:
		what = "the directory and its tables are copied from the other copy"
		from, to := next.rgdOff, &next.gdOff
		if gd {
			from, to = next.gdOff, &next.rgdOff
		}
		at, err := r.copyDirectory(f, &next, from, size)
		if err != nil {
			return r.skip(err)
		}
		*to = uint64(at)
	}
	if !r.plausible(x.Name, &next) {
		return nil
	}
	r.did(DirectoryBeyondEnd, x.Name, 1, "%s", what)
	return r.writeHeader(f, &next)
}

// copyDirectory makes a directory with tables at the end of the file that says what the one at a sector says, durably; a
// crash leaks it.
func (r *repairer) copyDirectory(f fsx.File, h *header, from uint64, size int64) (int64, error) {
	s := &sparse{file: f, h: h, grain: int64(h.grain)}
	b := make([]byte, h.numGTs()*4)
	if err := readFull(f, b, int64(from)*SectorSize); err != nil {
		return 0, err
	}
	at := roundUp(ceilDiv(size, SectorSize), s.grain)
	dir := gdSectors(h.numGTs())
	if _, err := f.WriteAt(h.directory(uint64(at)), at*SectorSize); err != nil {
		return 0, err
	}
	for i, v := range decodeEntries(b) {
		gt, err := s.readTable(v)
		if err != nil {
			return 0, err
		}
		if v == 1 {
			gt = ones(h)
		}
		if zeros(gt) {
			continue // the file is a hole there
		}
		if _, err := f.WriteAt(encodeEntries(gt), (at+dir+int64(i)*h.gtSectors())*SectorSize); err != nil {
			return 0, err
		}
	}
	end := roundUp(at+dir+h.numGTs()*h.gtSectors(), s.grain) // a later grain begins behind it
	return at, errors.Join(f.Truncate(end*SectorSize), f.Datasync())
}

func ones(h *header) []uint32 {
	gt := make([]uint32, h.gtes)
	for j := range gt {
		gt[j] = 1
	}
	return gt
}
