package vmdk

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"io"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Markers of a streamOptimized extent: one sector with u64 val, u32 size 0, u32 type (Virtual Disk Format 5.0, "Stream-Optimized
// Compressed Sparse Extents"). With a size it is the head of a grain record: u64 first sector of the grain, u32 size, data.
const (
	markerEnd      = 0
	markerTable    = 1
	markerDir      = 2
	markerFooter   = 3
	markerProgress = 4 // vSphere writes it; nothing follows
	gdAtEnd        = ^uint64(0)
	footerSearch   = 64 << 10 // zeros behind the end that a tar or an upload added
)

// streamMap is what Check and Repair know of a compressed extent.
type streamMap struct {
	name        string
	file        fsx.File
	h           *header // the footer, if there is one
	start, size int64
	footer      int64 // sector of the footer marker, 0: none
	gd          []uint32
	buf         []byte
	inflated    []byte
}

// stream examines a compressed extent: where its directory is, every table, every record that the tables name, and then the
// records in the order of the file, which a reader from a pipe sees.
func (c *checker) stream(f fsx.File, h *header, x ExtentLine, start, size int64) error {
	whole := max(x.Sectors, 0) * SectorSize
	if ds := streamDefects(h, size); len(ds) > 0 {
		for _, d := range ds {
			c.add(d.code, Fatal, x.Name, start, whole, d.err.Remedy, "%s", d.err.Message)
		}
		return nil
	}
	if h.flags&flagMarkers == 0 {
		c.add(Compressed, Fatal, x.Name, start, whole, "", "records without their place in the disk are not supported")
		return nil
	}
	if x.Sectors >= 0 && int64(h.capacity) != x.Sectors {
		sev := map[bool]Severity{true: Fatal, false: Warning}[int64(h.capacity) < x.Sectors]
		c.add(CapacityDiffers, sev, x.Name, start, whole, "Convert it: the header is right",
			"the header maps %d sectors, the descriptor says %d", h.capacity, x.Sectors)
	}
	if h.version != 3 {
		c.add(BadVersion, Warning, x.Name, start, whole, "Convert it", "a compressed extent has version 3, this has %d; ESXi refuses it", h.version)
	}
	m := newStreamMap(f, h, x.Name, start, size)
	if err := c.streamFooter(m); err != nil {
		return err
	}
	ok, err := m.readDirectory()
	if err != nil {
		return err
	}
	if !ok && m.h.gdOff != gdAtEnd {
		c.add(DirectoryBeyondEnd, Fatal, x.Name, start, whole,
			"Run vmdkctl repair, or convert it: its grains are found by reading it from begin to end", "there is no grain directory at sector %d", m.h.gdOff)
	}
	if err := c.streamTables(m); err != nil {
		return err
	}
	if err := c.streamCopies(m); err != nil {
		return err
	}
	return c.streamRecords(m)
}

// streamCopies compares the redundant tables, which qemu writes, with the tables.
func (c *checker) streamCopies(m *streamMap) error {
	return m.copies(func(i int64, gt, rgt []uint32, _ int64) error {
		s := &sparse{name: m.name, h: m.h, grain: int64(m.h.grain), sectors: int64(m.h.capacity)}
		(&tableChecker{c: c, s: s, start: m.start}).compare(i, gt, rgt)
		return nil
	})
}

// copies visits each table that has a redundant copy, and the byte of the file where the copy is.
func (m *streamMap) copies(visit func(i int64, gt, rgt []uint32, at int64) error) error {
	dir, limit := uint64(gdSectors(m.h.numGTs())), uint64(m.size/SectorSize)
	if !m.h.redundant() || m.h.rgdOff == 0 || m.h.rgdOff > limit || dir > limit-m.h.rgdOff || m.gd == nil {
		return nil
	}
	b := make([]byte, m.h.numGTs()*4)
	if err := readFull(m.file, b, int64(m.h.rgdOff)*SectorSize); err != nil {
		return err
	}
	for i, at := range decodeEntries(b) {
		gt, ok, err := m.table(int64(i))
		if err != nil {
			return err
		}
		if at <= 1 || !ok || gt == nil || (int64(at)+m.h.gtSectors())*SectorSize > m.size {
			continue
		}
		rgt := make([]byte, m.h.gtes*4)
		if err := readFull(m.file, rgt, int64(at)*SectorSize); err != nil {
			return err
		}
		if err := visit(int64(i), gt, decodeEntries(rgt), int64(at)*SectorSize); err != nil {
			return err
		}
	}
	return nil
}

// streamDefects are the reasons why nothing can be done with a compressed extent of this header; where its directory is comes
// later.
func streamDefects(h *header, size int64) []defect {
	plain := *h
	plain.flags &^= flagCompressed | flagMarkers | flagRedundant
	plain.compression, plain.gdOff = 0, 1
	return plain.defects(size)
}

func newStreamMap(f fsx.File, h *header, name string, start, size int64) *streamMap {
	return &streamMap{name: name, file: f, h: h, start: start, size: size, inflated: make([]byte, h.grain*SectorSize+1)}
}

// marker reads one sector.
func (m *streamMap) marker(sector int64) (val uint64, size, kind uint32, err error) {
	var b [SectorSize]byte
	n, err := m.file.ReadAt(b[:], sector*SectorSize)
	if err != nil && !(errors.Is(err, io.EOF) && n >= 16) {
		return 0, 0, 0, err
	}
	le := binary.LittleEndian
	return le.Uint64(b[:]), le.Uint32(b[8:]), le.Uint32(b[12:]), nil
}

// findFooter looks for the footer where the file ends, but for zeros; nil if there is none.
func (m *streamMap) findFooter() (*header, error) {
	last := m.size/SectorSize - 3
	for at := last; at > 0 && at > last-footerSearch/SectorSize; at-- {
		val, size, kind, err := m.marker(at)
		if err != nil {
			return nil, err
		}
		if val == 1 && size == 0 && kind == markerFooter {
			b := make([]byte, SectorSize)
			if err := readFull(m.file, b, (at+1)*SectorSize); err != nil {
				return nil, err
			}
			h, err := decodeHeader(b)
			if err != nil {
				return nil, nil //nolint:nilerr // it is none
			}
			m.footer = at
			return h, nil
		}
	}
	return nil, nil
}

// streamFooter finds the footer and compares it with the header.
func (c *checker) streamFooter(m *streamMap) error {
	whole := int64(m.h.capacity) * SectorSize
	foot, err := m.findFooter()
	switch {
	case err != nil:
		return err
	case foot == nil && m.h.gdOff == gdAtEnd:
		c.add(StreamFooterDamaged, Error, m.name, m.start, whole,
			"Run vmdkctl repair, or convert it: its grains are found by reading it from begin to end",
			"the header says that the directory is at the end, but there is no footer: the file was cut off, or is damaged there")
		return nil
	case foot == nil:
		return nil
	}
	same := *foot
	same.gdOff, same.unclean = m.h.gdOff, m.h.unclean
	if foot.gdOff != m.h.gdOff && m.h.gdOff != gdAtEnd || !bytes.Equal(same.encode()[:79], m.h.encode()[:79]) || foot.gdOff == gdAtEnd {
		c.add(StreamFooterDamaged, Error, m.name, m.start, whole, "Run vmdkctl repair, or convert it", "footer and header disagree")
		if m.h.gdOff != gdAtEnd || foot.gdOff == gdAtEnd {
			return nil
		}
	}
	m.h = &same
	m.h.gdOff = foot.gdOff
	return nil
}

// readDirectory reads the directory; false if there is none in the file.
func (m *streamMap) readDirectory() (bool, error) {
	n, limit := m.h.numGTs(), uint64(m.size/SectorSize)
	if m.h.gdOff == 0 || m.h.gdOff > limit || uint64(gdSectors(n)) > limit-m.h.gdOff {
		return false, nil
	}
	b := make([]byte, n*4)
	if err := readFull(m.file, b, int64(m.h.gdOff)*SectorSize); err != nil {
		return false, err
	}
	m.gd = decodeEntries(b)
	return true, nil
}

// table is table i; nil where there is none, false if it is not in the file.
func (m *streamMap) table(i int64) ([]uint32, bool, error) {
	if i >= int64(len(m.gd)) || m.gd[i] == 0 {
		return nil, true, nil
	}
	at := int64(m.gd[i])
	if (at+m.h.gtSectors())*SectorSize > m.size {
		return nil, false, nil
	}
	b := make([]byte, m.h.gtes*4)
	err := readFull(m.file, b, at*SectorSize)
	return decodeEntries(b), true, err
}

func (m *streamMap) guest(g, count int64) (off, n int64) {
	gb := int64(m.h.grain) * SectorSize
	return m.start + g*gb, max(0, min(count*gb, int64(m.h.capacity)*SectorSize-g*gb))
}

// streamTables examines every record that a table names.
func (c *checker) streamTables(m *streamMap) error {
	places := newPlaceSet()
	for i := range m.gd {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		gt, ok, err := m.table(int64(i))
		if err != nil {
			return err
		}
		if !ok {
			off, n := m.guest(int64(i)*int64(m.h.gtes), int64(m.h.gtes))
			c.add(TableBeyondEnd, Fatal, m.name, off, n, "Convert it: its grains are found by reading it from begin to end",
				"grain table %d is said to be at sector %d", i, m.gd[i])
			continue
		}
		for j, v := range gt {
			if v == 0 || v == 1 && m.h.flags&flagZeroGrain != 0 {
				continue
			}
			g := int64(i)*int64(m.h.gtes) + int64(j)
			off, n := m.guest(g, 1)
			sectors, err := m.record(g, int64(v))
			if fault.KindOf(err) == fault.Damaged {
				c.add(StreamGrainDamaged, Error, m.name, off, n, "Run vmdkctl repair: another record may have the grain, else its content is lost",
					"grain %d: %v", g, err)
				continue
			}
			if err != nil {
				return err
			}
			c.r.Allocated += n
			if !places.add(int64(v), sectors) {
				c.add(GrainShared, Error, m.name, off, n, "Convert what is readable", "grain %d is at sector %d, where another grain is", g, v)
			}
		}
	}
	return nil
}

// record reads the record of a grain at a sector and checks it whole: fault.Damaged says what is wrong. It is so many sectors long.
func (m *streamMap) record(g, at int64) (sectors int64, err error) {
	bad := func(format string, args ...any) (int64, error) {
		return 0, fault.New(fault.Damaged, "", format, args...)
	}
	grain := int64(m.h.grain)
	if g*grain >= int64(m.h.capacity) {
		return bad("it lies behind the capacity")
	}
	if (at+1)*SectorSize > m.size || at < 1 {
		return bad("its record is said to be at sector %d, outside the file", at)
	}
	lba, size, _, err := m.marker(at)
	if err != nil {
		return 0, err
	}
	switch most := 2*grain*SectorSize + 64; {
	case size == 0 || int64(size) > most:
		return bad("its record at sector %d has %d bytes, not 1 to %d", at, size, most)
	case int64(lba) != g*grain:
		return bad("the record at sector %d is of disk sector %d", at, lba)
	case at*SectorSize+12+int64(size) > m.size:
		return bad("the file ends inside its record")
	}
	m.buf = slices.Grow(m.buf[:0], int(size))[:size]
	if err := readFull(m.file, m.buf, at*SectorSize+12); err != nil {
		return 0, err
	}
	_, n := m.guest(g, 1)
	z, err := zlib.NewReader(bytes.NewReader(m.buf))
	if err != nil {
		return bad("its record at sector %d is not compressed by zlib", at)
	}
	// One byte more than a grain, so that a longer one is seen; never more, whatever the data claims.
	switch got, err := io.ReadFull(z, m.inflated); {
	case err == nil:
		return bad("its record at sector %d inflates to more than a grain", at)
	case !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF), z.Close() != nil:
		return bad("its record at sector %d: %v", at, err)
	case int64(got) < n:
		return bad("its record at sector %d inflates to %d bytes, the disk has %d there", at, got, n)
	}
	return ceilDiv(12+int64(size), SectorSize), nil
}

// streamVisit is what a walk through the file tells.
type streamVisit struct {
	record func(g, at int64) error
	// meta is told of a piece of metadata, behind its marker; nil: nobody asks.
	meta func(kind uint32, at int64) error
	// gap is told where something makes no sense; then the walk looks for the next good record. nil: it ends there.
	gap func(at int64)
}

// walk goes through the file as a reader from a pipe does. It ends at the end marker or where the file ends, at next; ended
// tells whether it was the marker.
func (m *streamMap) walk(v streamVisit) (ended bool, next int64, err error) {
	grain := int64(m.h.grain)
	at := int64(m.h.overHead)
	for (at+1)*SectorSize <= m.size {
		val, size, kind, err := m.marker(at)
		if err != nil {
			return false, at, err
		}
		switch {
		case size != 0 && int64(size) <= 2*grain*SectorSize+64 && val < m.h.capacity && int64(val)%grain == 0 && at*SectorSize+12+int64(size) <= m.size:
			if err := v.record(int64(val)/grain, at); err != nil {
				return false, at, err
			}
			at += ceilDiv(12+int64(size), SectorSize)
		case size == 0 && kind == markerEnd && val == 0:
			return true, at, nil
		case size == 0 && kind == markerProgress:
			at++
		case size == 0 && kind <= markerFooter && int64(val) == m.follows(kind):
			if v.meta != nil {
				if err := v.meta(kind, at+1); err != nil {
					return false, at, err
				}
			}
			at += 1 + int64(val)
		case v.gap == nil:
			return false, at, nil
		default:
			v.gap(at)
			if at, err = m.resume(at + 1); err != nil {
				return false, at, err
			}
		}
	}
	return false, at, nil
}

// follows is how many sectors a marker announces.
func (m *streamMap) follows(kind uint32) int64 {
	return map[uint32]int64{markerTable: m.h.gtSectors(), markerDir: gdSectors(m.h.numGTs()), markerFooter: 1}[kind]
}

// resume is the first sector from at on where a good record begins, or a marker of metadata and nothing else in its sector; else the
// end of the file.
func (m *streamMap) resume(at int64) (int64, error) {
	b := make([]byte, SectorSize)
	for ; (at+1)*SectorSize <= m.size; at++ {
		if err := readFull(m.file, b, at*SectorSize); err != nil {
			return at, err
		}
		val, size, kind := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
		if size == 0 {
			if kind >= markerTable && kind <= markerFooter && int64(val) == m.follows(kind) && len(bytes.TrimLeft(b[16:], "\x00")) == 0 {
				return at, nil
			}
			continue
		}
		if val >= m.h.capacity || val%m.h.grain != 0 {
			continue
		}
		switch _, err := m.record(int64(val/m.h.grain), at); fault.KindOf(err) {
		case "":
			return at, nil
		case fault.Damaged:
		default:
			return at, err
		}
	}
	return at, nil
}

// streamRecords compares the records of the file with the tables.
func (c *checker) streamRecords(m *streamMap) error {
	table, index := []uint32(nil), int64(-1)
	ended, next, err := m.walk(streamVisit{record: func(g, at int64) error {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if i := g / int64(m.h.gtes); i != index {
			gt, ok, err := m.table(i)
			if err != nil {
				return err
			}
			if table, index = gt, i; !ok {
				table = nil
			}
		}
		v := uint32(0)
		if table != nil {
			v = table[g%int64(m.h.gtes)]
		}
		if int64(v) == at || m.gd == nil {
			return nil
		}
		switch _, err := m.record(g, at); fault.KindOf(err) {
		case fault.Damaged: // the table is right not to name it
			return nil
		case "":
			off, n := m.guest(g, 1)
			c.add(StreamTablesDiffer, Error, m.name, off, n, "Run vmdkctl repair, or convert it: reading it from begin to end finds the grain",
				"sector %d holds grain %d, its table names sector %d", at, g, v)
		default:
			return err
		}
		return nil
	}})
	if err != nil || ended {
		return err
	}
	sev, what := Note, "a reader from a pipe may take it for cut off"
	if next*SectorSize < m.size {
		sev, what = Warning, "a reader from a pipe does not get further"
	}
	c.add(StreamEndMissing, sev, m.name, 0, 0, "Convert it", "there is no end marker, and no record at sector %d: %s", next, what)
	return nil
}
