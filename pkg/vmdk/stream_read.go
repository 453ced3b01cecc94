package vmdk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zlib"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

const (
	grainRecordHead = 12 // bytes before the data of a grain
	inflatedGrains  = 8  // grains kept inflated, for readers of less than a grain
)

// packedMost is the longest compressed grain that is taken: data that cannot be compressed grows a little.
func packedMost(grain int64) int64 { return 2*grain + 64 }

// stream is the grain map of a streamOptimized extent.
type stream struct {
	name    string
	file    fsx.File
	h       *header
	grain   int64 // bytes
	sectors int64 // guest sectors
	size    int64 // bytes of the file
	gd      []uint32
	tables  []atomic.Pointer[[]uint32]

	mu    sync.Mutex // guards loading of tables, and cache
	cache []*inflated
}

// inflated is a grain that was read.
type inflated struct {
	grain int64
	data  []byte
}

// openStream opens a streamOptimized extent: its directory stands in front, or at the end with a footer, or is missing because the
// stream was cut off or never had one, and is rebuilt from the grains. The file belongs to the result.
func openStream(name string, file fsx.File, h *header, lineSectors, size int64) (*stream, error) {
	s := &stream{name: name, file: file, h: h, grain: int64(h.grain) * SectorSize, sectors: min(lineSectors, int64(h.capacity)), size: size}
	n := h.numGTs()
	s.tables = make([]atomic.Pointer[[]uint32], n)
	if h.gdOff == gdAtEnd {
		f, err := s.footer()
		if err != nil {
			return nil, err
		}
		if f == nil {
			return s, s.scan()
		}
		if f.grain != h.grain || f.capacity != h.capacity || f.gtes != h.gtes {
			return nil, fault.New(fault.Damaged, "run vmdkctl repair", "the footer (%s) contradicts the header (%s)", f, h)
		}
		h.gdOff = f.gdOff
	}
	limit := uint64(size / SectorSize)
	if h.gdOff == 0 || h.gdOff > limit || uint64(gdSectors(n)) > limit-h.gdOff {
		return nil, fault.New(fault.Damaged, "run vmdkctl repair: it finds the grains by their markers",
			"grain directory at sector %d of %d sectors is outside the file of %d sectors", h.gdOff, gdSectors(n), limit)
	}
	b := make([]byte, n*4)
	if err := readFull(file, b, int64(h.gdOff)*SectorSize); err != nil {
		return nil, fault.Wrap(err, "grain directory")
	}
	s.gd = decodeEntries(b)
	for i, e := range s.gd {
		if e != 0 && int64(e)*SectorSize+h.gtSectors()*SectorSize > roundUp(size, SectorSize) {
			return nil, fault.New(fault.Damaged, "run vmdkctl repair", "grain table %d is at sector %d, outside the file", i, e)
		}
	}
	return s, nil
}

// footer finds the copy of the header at the end of the stream, before the zeros that a transport may have added; nil: there is none.
func (s *stream) footer() (*header, error) {
	from := max(0, (s.size-footerSearch-3*SectorSize)/SectorSize*SectorSize)
	b := make([]byte, s.size/SectorSize*SectorSize-from)
	if err := readFull(s.file, b, from); err != nil {
		return nil, err
	}
	end := len(b)
	for end >= 3*SectorSize && isZeroSector(b[end-2*SectorSize:end-SectorSize]) { // the last sector, the end of the stream, is zeros, too
		end -= SectorSize
	}
	if end < 3*SectorSize || !isZeroSector(b[end-SectorSize:end]) {
		return nil, nil
	}
	m := b[end-3*SectorSize:]
	le := binary.LittleEndian
	if le.Uint64(m) != 1 || le.Uint32(m[8:]) != 0 || le.Uint32(m[12:]) != markerFooter {
		return nil, nil
	}
	f, err := decodeHeader(m[SectorSize:])
	if err != nil || f.gdOff == gdAtEnd {
		return nil, nil //nolint:nilerr // it only looked like one
	}
	return f, nil
}

var zeroSector [SectorSize]byte

func isZeroSector(b []byte) bool { return bytes.Equal(b, zeroSector[:]) }

func (s *stream) grainBytes() int64 { return s.grain }

func (s *stream) close() error { return s.file.Close() }

// entry is the sector of the record of a grain.
func (s *stream) entry(g int64) (uint32, error) {
	i, j := g/int64(s.h.gtes), g%int64(s.h.gtes)
	t := s.tables[i].Load()
	if t == nil {
		if s.gd == nil || s.gd[i] == 0 {
			return 0, nil
		}
		var err error
		if t, err = s.load(i); err != nil {
			return 0, err
		}
	}
	e := (*t)[j]
	if e != 0 && (int64(e) >= s.size/SectorSize || e == 1 && s.h.flags&flagZeroGrain == 0) {
		return 0, fault.New(fault.Damaged, "run vmdkctl check", "grain %d is said to be at sector %d", g, e)
	}
	return e, nil
}

func (s *stream) load(i int64) (*[]uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tables[i].Load(); t != nil {
		return t, nil
	}
	b := make([]byte, s.h.gtes*4)
	if err := readFull(s.file, b, int64(s.gd[i])*SectorSize); err != nil {
		return nil, fault.Wrap(err, "grain table %d", i)
	}
	t := decodeEntries(b)
	s.tables[i].Store(&t)
	return &t, nil
}

func (s *stream) run(off, n int64) (Run, error) {
	g := off / s.grain
	first, err := s.entry(g)
	if err != nil {
		return Run{}, err
	}
	r := Run{Len: min(n, (g+1)*s.grain-off), State: streamState(first)}
	r.Packed = r.State == Allocated
	for r.Len < n {
		g++
		e, err := s.entry(g)
		if err != nil || streamState(e) != r.State {
			break // an error is told by the next call, for the range that it concerns
		}
		r.Len += min(s.grain, n-r.Len)
	}
	return r, nil
}

func streamState(entry uint32) State {
	switch entry {
	case 0:
		return Unallocated
	case 1:
		return Zeroed
	}
	return Allocated
}

func (s *stream) read(p []byte, off int64) error {
	for len(p) > 0 {
		g := off / s.grain
		n := min(int64(len(p)), (g+1)*s.grain-off)
		if n == s.grain {
			if err := s.inflate(g, p[:n]); err != nil {
				return err
			}
		} else {
			b, err := s.cached(g)
			if err != nil {
				return err
			}
			copy(p[:n], b[off-g*s.grain:])
		}
		p, off = p[n:], off+n
	}
	return nil
}

// cached is the content of a grain; it is not to be changed.
func (s *stream) cached(g int64) ([]byte, error) {
	s.mu.Lock()
	for _, c := range s.cache {
		if c.grain == g {
			s.mu.Unlock()
			return c.data, nil
		}
	}
	s.mu.Unlock()
	c := &inflated{g, make([]byte, s.grain)}
	if err := s.inflate(g, c.data); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cache = append(s.cache, c); len(s.cache) > inflatedGrains {
		s.cache = s.cache[1:]
	}
	return c.data, nil
}

// inflate reads a grain into p, which is as long as one.
func (s *stream) inflate(g int64, p []byte) error {
	e, err := s.entry(g)
	if err != nil {
		return err
	}
	if e <= 1 {
		clear(p)
		return nil
	}
	at := int64(e) * SectorSize
	most := min(packedMost(s.grain)+grainRecordHead, s.size-at)
	guess := min(most, s.grain+SectorSize)
	if next, err := s.entry(min(g+1, (s.sectors*SectorSize-1)/s.grain)); err == nil && next > e { // grains follow each other
		guess = min(guess, int64(next-e)*SectorSize)
	}
	buf := packedBuffers.Get().(*[]byte)
	defer packedBuffers.Put(buf)
	if int64(cap(*buf)) < most {
		*buf = make([]byte, most)
	}
	b := (*buf)[:guess]
	if err := readFull(s.file, b, at); err != nil {
		return fault.Wrap(err, "grain %d", g)
	}
	lba, n, err := s.record(b, g)
	if err != nil {
		return err
	}
	if int64(lba) != g*int64(s.h.grain) {
		return fault.New(fault.Damaged, "run vmdkctl repair", "grain %d is at sector %d, whose marker says sector %d of the disk", g, e, lba)
	}
	if end := grainRecordHead + n; end > most {
		return fault.New(fault.Damaged, "restore the file, it was cut off", "grain %d of %d bytes ends behind the file", g, n)
	} else if end > guess {
		b = (*buf)[:end]
		if err := readFull(s.file, b[guess:], at+guess); err != nil {
			return fault.Wrap(err, "grain %d", g)
		}
	}
	least := min(s.grain, s.sectors*SectorSize-g*s.grain)
	return fault.Wrap(inflateGrain(p, b[grainRecordHead:grainRecordHead+n], least), "grain %d at sector %d", g, e)
}

// record reads the head of the record of a grain: its first guest sector, and how many bytes of data there are.
func (s *stream) record(b []byte, g int64) (lba uint64, n int64, err error) {
	if len(b) < grainRecordHead {
		return 0, 0, fault.New(fault.Damaged, "restore the file, it was cut off", "grain %d ends behind the file", g)
	}
	lba, n = binary.LittleEndian.Uint64(b), int64(binary.LittleEndian.Uint32(b[8:]))
	if n == 0 || n > packedMost(s.grain) {
		return 0, 0, fault.New(fault.Damaged, "run vmdkctl repair", "grain %d has %d bytes of compressed data", g, n)
	}
	return lba, n, nil
}

var packedBuffers = sync.Pool{New: func() any { return new([]byte) }}

// inflater is a decompressor that is used again.
type inflater struct {
	in  bytes.Reader
	out io.ReadCloser
}

var inflaters = sync.Pool{New: func() any { return new(inflater) }}

// inflateGrain fills p with the content of a compressed grain. At least bytes must be there, at most len(p); the rest is zeros: the
// last grain of a disk is a whole one, or only what the disk has of it. Kinds: Damaged.
func inflateGrain(p, packed []byte, least int64) error {
	z := inflaters.Get().(*inflater)
	defer inflaters.Put(z)
	z.in.Reset(packed)
	var err error
	if z.out == nil {
		z.out, err = zlib.NewReader(&z.in)
	} else {
		err = z.out.(zlib.Resetter).Reset(&z.in, nil)
	}
	if err != nil {
		z.out = nil
		return fault.New(fault.Damaged, "run vmdkctl repair", "its data is not zlib's: %w", err)
	}
	n := 0
	for n < len(p) && err == nil {
		var k int
		k, err = z.out.Read(p[n:])
		n += k
	}
	if n == len(p) && err == nil { // nothing may follow, and the checksum is compared at the end
		var more [1]byte
		if _, err = io.ReadFull(z.out, more[:]); err == nil {
			return fault.New(fault.Damaged, "run vmdkctl repair", "its data is longer than a grain")
		}
	}
	if !errors.Is(err, io.EOF) || int64(n) < least {
		return fault.New(fault.Damaged, "run vmdkctl repair", "its data breaks off after %d bytes of %d: %w", n, least, err)
	}
	clear(p[n:])
	return nil
}
