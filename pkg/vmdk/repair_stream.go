package vmdk

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// streamRepair plans the repair of a compressed extent. Every record says which grain it is, so that a walk through the file
// rebuilds any table; records are never written.
type streamRepair struct {
	r       *repairer
	m       *streamMap
	head    *header // sector 0
	scan    *streamScan
	changed map[int64]bool // tables
}

// streamScan is what a walk through the file found.
type streamScan struct {
	tables map[int64][]uint32 // the last good record of each grain
	gaps   []span             // grains whose records may be lost
	dir    int64              // sector of the directory behind its marker, 0: none
	places []int64            // sectors of tables behind their markers
	ended  bool
	next   int64 // first sector behind the last thing that makes sense
}

// stream repairs a compressed extent: 1. tables, directory, sync, 2. footer or header.
func (r *repairer) stream(f fsx.File, h *header, x *ExtentLine, start, size int64) error {
	codes := []Code{TableCopiesDiffer, StreamTablesDiffer, StreamGrainDamaged, StreamFooterDamaged, DirectoryBeyondEnd, TableBeyondEnd}
	if !slices.ContainsFunc(codes, r.asked) || h.flags&flagMarkers == 0 || len(streamDefects(h, size)) > 0 {
		return nil
	}
	e := &streamRepair{r: r, changed: map[int64]bool{}, m: newStreamMap(f, h, x.Name, start, size), head: h}
	foot, err := e.m.findFooter()
	if err != nil {
		return r.skip(err)
	}
	bad := foot == nil && h.gdOff == gdAtEnd || foot != nil && (foot.gdOff == gdAtEnd || h.gdOff != gdAtEnd && foot.gdOff != h.gdOff)
	if foot != nil && h.gdOff == gdAtEnd && foot.gdOff != gdAtEnd {
		own := *h
		own.gdOff = foot.gdOff
		e.m.h = &own
		bad = string(foot.encode()[:79]) != string(own.encode()[:79])
	}
	ok, err := e.m.readDirectory()
	if err == nil {
		err = e.walk()
	}
	if err != nil {
		return r.skip(err)
	}
	switch {
	case !ok && !r.asked(DirectoryBeyondEnd) && (e.m.h.gdOff != gdAtEnd || !r.asked(StreamFooterDamaged)):
		return nil
	case !ok:
		return e.appendTables()
	}
	if err := e.entries(); err != nil {
		return err
	}
	if err := e.copies(); err != nil {
		return r.skip(err)
	}
	if bad && r.asked(StreamFooterDamaged) {
		return e.footerAt(e.m.footer, StreamFooterDamaged)
	}
	return nil
}

// streamHeader is the header of a compressed extent; nil if it is none.
func (r *repairer) streamHeader(f fsx.File) *header {
	b := make([]byte, SectorSize)
	if readFull(f, b, 0) != nil {
		return nil
	}
	h, err := decodeHeader(b)
	if err != nil || h.flags&flagCompressed == 0 || h.compression != 1 {
		return nil
	}
	return h
}

// walk notes every good record, and between which grains it found something else; of two for one grain, the later one counts.
func (e *streamRepair) walk() error {
	e.scan = &streamScan{tables: map[int64][]uint32{}}
	m, per := e.m, int64(e.m.h.gtes)
	last, open, tail := int64(-1), false, int64(0)
	var err error
	e.scan.ended, e.scan.next, err = m.walk(streamVisit{record: func(g, at int64) error {
		if err := e.r.ctx.Err(); err != nil {
			return err
		}
		switch _, err := m.record(g, at); fault.KindOf(err) {
		case "":
		case fault.Damaged:
			e.gap(g, g+1)
			return nil
		default:
			return err
		}
		if open {
			e.gap(last+1, g)
		}
		gt := e.scan.tables[g/per]
		if gt == nil {
			gt = make([]uint32, per)
			e.scan.tables[g/per] = gt
		}
		gt[g%per], last, open = uint32(at), g, false
		return nil
	}, meta: func(kind uint32, at int64) error {
		switch kind {
		case markerDir:
			e.scan.dir = at
		case markerTable:
			e.scan.places = append(e.scan.places, at)
		}
		return nil
	}, gap: func(at int64) {
		if !open {
			tail = at
		}
		open = true
	}})
	if open && !e.scan.ended {
		e.scan.next = tail // half a record
	}
	if open || !e.scan.ended && e.scan.dir == 0 {
		e.gap(last+1, ceilDiv(int64(m.h.capacity), int64(m.h.grain)))
	}
	return err
}

// gap notes that grains of a range may have been in the file and are not found. Grains come in the order of the disk, as a rule.
func (e *streamRepair) gap(from, to int64) {
	if from < to && len(e.scan.gaps) < maxProblems {
		e.scan.gaps = append(e.scan.gaps, span{from, to})
	}
}

// tellGaps lists what a new table for grains from..to does not name because its record is damaged.
func (e *streamRepair) tellGaps(from, to int64) {
	for _, g := range e.scan.gaps {
		lo, hi := max(g.from, from), min(g.to, to)
		for ; lo < hi; lo++ { // but those that another record has
			at := lo
			for lo < hi && !e.found(lo) {
				lo++
			}
			if off, n := e.m.guest(at, lo-at); n > 0 {
				e.r.lost(StreamGrainDamaged, e.m.name, off, n, "a record that cannot be read is, or was, there; what no other record has reads as zeros now")
			}
		}
	}
}

func (e *streamRepair) found(g int64) bool {
	gt := e.scan.tables[g/int64(e.m.h.gtes)]
	return gt != nil && gt[g%int64(e.m.h.gtes)] != 0
}

// entries puts the entries right that name no good record.
func (e *streamRepair) entries() error {
	m, r := e.m, e.r
	for i := range m.gd {
		gt, ok, err := m.table(int64(i))
		if err != nil {
			return r.skip(err)
		}
		found := e.scan.tables[int64(i)]
		if !ok || gt == nil && found != nil {
			if code := map[bool]Code{true: StreamTablesDiffer, false: TableBeyondEnd}[ok]; r.asked(code) {
				if err := e.newTable(int64(i), found, code); err != nil {
					return err
				}
			}
			continue
		}
		for j, v := range gt {
			w := uint32(0)
			if found != nil {
				w = found[j]
			}
			if v == w || v == 1 && m.h.flags&flagZeroGrain != 0 {
				continue
			}
			if err := e.entry(int64(i)*int64(m.h.gtes)+int64(j), v, w, int64(m.gd[i])*SectorSize+int64(j)*4); err != nil {
				return err
			}
		}
	}
	return m.file.Datasync()
}

// entry decides about one that says v, where the walk found the grain at w (0: nowhere).
func (e *streamRepair) entry(g int64, v, w uint32, at int64) error {
	m, r := e.m, e.r
	code := StreamTablesDiffer
	if v != 0 {
		switch _, err := m.record(g, int64(v)); fault.KindOf(err) {
		case "":
			return nil // two records, or one where the walk does not come
		case fault.Damaged:
			code = StreamGrainDamaged
		default:
			return err
		}
	}
	if !r.asked(code) || w == 0 && !r.p.Loss {
		return nil
	}
	if w == 0 {
		off, n := m.guest(g, 1)
		r.lost(code, m.name, off, n, "no good record of the grain is in the file; it reads as zeros now")
		r.did(code, m.name, 1, "the entry is cleared")
	} else {
		r.did(code, m.name, 1, "the table names the record that was found")
	}
	r.res.Content = true
	e.changed[g/int64(m.h.gtes)] = true
	_, err := m.file.WriteAt(binary.LittleEndian.AppendUint32(nil, w), at)
	return err
}

// copies makes the redundant tables equal to the tables, which name good records by now.
func (e *streamRepair) copies() error {
	return e.m.copies(func(i int64, gt, rgt []uint32, at int64) error {
		if slices.Equal(gt, rgt) || !e.changed[i] && !e.r.asked(TableCopiesDiffer) {
			return nil
		}
		if !e.changed[i] {
			e.r.did(TableCopiesDiffer, e.m.name, 1, "the redundant table is made anew")
		}
		_, err := e.m.file.WriteAt(encodeEntries(gt), at)
		return errors.Join(err, e.m.file.Datasync())
	})
}

// namesAll tells that the directory's tables name every record that was found.
func (e *streamRepair) namesAll() bool {
	for i, found := range e.scan.tables {
		gt, ok, err := e.m.table(i)
		if err != nil || !ok || !slices.Equal(gt, found) {
			return false
		}
	}
	return true
}

// newTable gives the directory the table that lies behind a marker, or puts one at the end of the file, and with it the footer.
func (e *streamRepair) newTable(i int64, gt []uint32, code Code) error {
	m := e.m
	if gt == nil {
		gt = make([]uint32, m.h.gtes)
	}
	e.r.res.Content = true
	e.tellGaps(i*int64(m.h.gtes), (i+1)*int64(m.h.gtes))
	for _, at := range e.scan.places {
		b := make([]byte, len(gt)*4)
		if readFull(m.file, b, at*SectorSize) == nil && slices.Equal(decodeEntries(b), gt) {
			e.r.did(code, m.name, 1, "the directory names the table that was found")
			return e.nameTable(i, at)
		}
	}
	info, err := m.file.Stat()
	if err != nil {
		return err
	}
	at := ceilDiv(info.Size, SectorSize)
	e.r.did(code, m.name, 1, "a table is made of the records that were found")
	if _, err = m.file.WriteAt(encodeEntries(gt), at*SectorSize); err != nil {
		return err
	}
	if e.head.gdOff == gdAtEnd {
		e.m.size = (at + m.h.gtSectors()) * SectorSize
		if err := e.footerAt(at+m.h.gtSectors(), code); err != nil {
			return err
		}
	}
	return errors.Join(m.file.Datasync(), e.nameTable(i, at))
}

func (e *streamRepair) nameTable(i, at int64) error {
	_, err := e.m.file.WriteAt(binary.LittleEndian.AppendUint32(nil, uint32(at)), int64(e.m.h.gdOff)*SectorSize+i*4)
	return err
}

// appendTables makes tables and directory of the records, behind the last record or the end of the file.
func (e *streamRepair) appendTables() error {
	m, r := e.m, e.r
	code := DirectoryBeyondEnd
	if m.h.gdOff == gdAtEnd {
		code = StreamFooterDamaged
	}
	if e.scan.dir != 0 && e.head.gdOff == gdAtEnd { // the directory is there, only nothing says so
		own := *m.h
		own.gdOff = uint64(e.scan.dir)
		m.h = &own
		if ok, err := m.readDirectory(); err == nil && ok && e.namesAll() {
			return e.footerAt(e.scan.dir+gdSectors(m.h.numGTs()), code)
		}
	}
	if len(e.scan.gaps) > 0 && !r.p.Loss {
		return nil
	}
	e.tellGaps(0, ceilDiv(int64(m.h.capacity), int64(m.h.grain)))
	at := e.scan.next
	if e.scan.ended || e.head.gdOff != gdAtEnd {
		at = ceilDiv(m.size, SectorSize)
	}
	var b []byte
	gd := make([]uint32, m.h.numGTs())
	marker := func(val int64, kind uint32) {
		s := make([]byte, SectorSize)
		binary.LittleEndian.PutUint64(s, uint64(val))
		binary.LittleEndian.PutUint32(s[12:], kind)
		b = append(b, s...)
	}
	for i := range gd {
		if gt := e.scan.tables[int64(i)]; gt != nil {
			marker(m.h.gtSectors(), markerTable)
			gd[i] = uint32(at + int64(len(b))/SectorSize)
			b = append(b, encodeEntries(gt)...)
		}
	}
	marker(gdSectors(m.h.numGTs()), markerDir)
	own := *m.h
	own.gdOff = uint64(at + int64(len(b))/SectorSize)
	b = append(b, encodeEntries(gd)...)
	b = append(b, make([]byte, roundUp(int64(len(b)), SectorSize)-int64(len(b)))...)
	if _, err := m.file.WriteAt(b, at*SectorSize); err != nil {
		return err
	}
	r.res.Content = true
	if err := m.file.Datasync(); err != nil {
		return err
	}
	if e.head.gdOff == gdAtEnd {
		m.h = &own
		return e.footerAt(at+int64(len(b))/SectorSize, code)
	}
	m.h = &own
	r.did(code, m.name, 1, "tables and directory are made of the records that were found")
	return r.writeHeader(m.file, &own)
}

// footerAt writes footer and end marker at a sector, if the file ends there or only zeros follow, as far as readers look.
func (e *streamRepair) footerAt(at int64, code Code) error {
	m := e.m
	if at == 0 {
		return nil
	}
	own := *m.h
	own.unclean = false
	b := make([]byte, 3*SectorSize)
	binary.LittleEndian.PutUint64(b, 1)
	binary.LittleEndian.PutUint32(b[12:], markerFooter)
	copy(b[SectorSize:], own.encode())
	end := (at + 3) * SectorSize
	if m.size-end > footerSearch {
		return nil
	}
	b = append(b, make([]byte, max(0, m.size-end))...)
	e.r.did(code, m.name, 1, "the footer is written anew")
	_, err := m.file.WriteAt(b, at*SectorSize)
	return errors.Join(err, m.file.Datasync())
}

// guessStream is the header of a compressed extent that lost it: the footer's if there is one, else that with which every entry
// names a good record. What is ambiguous or empty is left alone.
func guessStream(f fsx.File, x ExtentLine, size int64) *header {
	base := header{version: 3, flags: flagNewLine | flagCompressed | flagMarkers, compression: 1, gtes: 512, lineEnds: goodLineEnds,
		capacity: uint64(x.Sectors), grain: DefaultGrainSectors}
	m := newStreamMap(f, &base, x.Name, 0, size)
	if foot, err := m.findFooter(); err == nil && foot != nil && foot.capacity == uint64(x.Sectors) && len(streamDefects(foot, size)) == 0 {
		h := *foot
		h.gdOff = gdAtEnd
		return &h
	}
	for _, grain := range []uint64{DefaultGrainSectors, 8, 16, 32, 64, 256, 512, 1024, 2048} {
		for desc := int64(embeddedDescSectors); desc > 0; desc-- {
			for _, redundant := range []uint32{0, flagRedundant} {
				h := base
				h.grain, h.flags = grain, base.flags|redundant
				h.place(desc)
				if m := newStreamMap(f, &h, x.Name, 0, size); len(streamDefects(&h, size)) == 0 && m.namesRecords() {
					return &h
				}
			}
		}
	}
	return nil
}

// namesRecords tells that the directory is where the layout has it, and that its tables name good records and nothing else.
func (m *streamMap) namesRecords() bool {
	if ok, err := m.readDirectory(); err != nil || !ok {
		return false
	}
	records := 0
	for i, want := range decodeEntries(m.h.directory(m.h.gdOff))[:len(m.gd)] {
		if m.gd[i] != 0 && m.gd[i] != want {
			return false
		}
		gt, ok, err := m.table(int64(i))
		if err != nil || !ok {
			return false
		}
		for j, v := range gt {
			if v == 0 {
				continue
			}
			if _, err := m.record(int64(i)*int64(m.h.gtes)+int64(j), int64(v)); err != nil {
				return false
			}
			records++
		}
	}
	return records > 0
}
