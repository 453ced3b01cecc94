package vmdk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zlib"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// StreamParams say what a StreamWriter makes.
type StreamParams struct {
	Capacity     int64  // bytes, a multiple of 512
	Name         string // file name, which the descriptor repeats
	UUID         UUID   // default: a new one
	AdapterType  string // default lsilogic
	GrainSectors int64  // default 128 (64 KiB)
	// Level of deflate, 1 (fast) to 9 (small); default 3.
	Level int
	// Workers compress at once; default GOMAXPROCS.
	Workers int
}

const (
	streamLevel     = 3
	maxStreamSector = maxFileSectors - 1<<16 // room for tables and footer below what an entry reaches
)

// StreamWriter writes a streamOptimized disk (Virtual Disk Format 5.0, "Stream-Optimized Compressed Sparse Extents"): the shape that
// VMware's tools, qemu and VirtualBox read, in ascending order of the disk.
//
// To an io.WriterAt it has its tables in front, as vmware-vdiskmanager makes it; into a pipe it has each table behind its grains, then
// the directory and a footer, as vSphere exports it.
//
// Goroutines: Workers of them compress, one writes; Close and Abort wait for all. One goroutine at a time calls the methods.
type StreamWriter struct {
	p     StreamParams
	h     *header
	out   io.Writer
	at    io.WriterAt // nil: a pipe
	grain int64       // bytes
	next  int64       // first byte of the disk that may come next

	jobs, order chan *packedGrain
	free        chan *packedGrain
	work        sync.WaitGroup // compressors
	wrote       chan struct{}  // closed when the writing goroutine has ended

	// What follows belongs to the writing goroutine until it has ended.
	sector    int64 // where the next record goes
	directory []uint32
	table     []uint32 // of a pipe: entries since the last table
	tableOf   int64
	tables    map[int64][]uint32 // of a file
	err       error

	failed chan struct{} // closed when err is set
}

// packedGrain is a grain on its way.
type packedGrain struct {
	n    int64 // number of the grain
	data []byte
	out  bytes.Buffer
	done chan struct{}
	err  error
}

// NewStreamWriter begins a disk. If at is given, it is where out writes, and byte 0 of it the first of the disk. Kinds: Invalid,
// OutOfRange, and what out returns.
func NewStreamWriter(out io.Writer, at io.WriterAt, p StreamParams) (*StreamWriter, error) {
	c := CreateParams{Capacity: p.Capacity, Type: MonolithicSparse, GrainSectors: p.GrainSectors, AdapterType: p.AdapterType, UUID: p.UUID}
	if err := c.complete(); err != nil {
		return nil, fault.Wrap(err, "create %s", clip(p.Name))
	}
	c.Type = StreamOptimized
	p.GrainSectors, p.Level = c.GrainSectors, orDefault(p.Level, streamLevel)
	if p.Level < 1 || p.Level > 9 {
		return nil, fault.New(fault.Invalid, "choose one from 1 to 9", "%d is no level of compression", p.Level)
	}
	if p.Workers <= 0 {
		p.Workers = runtime.GOMAXPROCS(0)
	}
	if err := checkValue("name", p.Name); err != nil {
		return nil, err
	}
	desc, err := newDescriptor(&c, []ExtentLine{{Access: "RW", Sectors: p.Capacity / SectorSize, Type: "SPARSE", Name: p.Name}})
	if err != nil {
		return nil, err
	}
	s := &StreamWriter{p: p, out: out, at: at, grain: p.GrainSectors * SectorSize, h: streamLayout(p.Capacity/SectorSize, p.GrainSectors, at != nil),
		jobs: make(chan *packedGrain), order: make(chan *packedGrain, 2*p.Workers), free: make(chan *packedGrain, 2*p.Workers+2),
		wrote: make(chan struct{}), failed: make(chan struct{}), tableOf: -1, tables: map[int64][]uint32{}}
	if len(desc.Text()) > embeddedDescSectors*SectorSize {
		return nil, fault.New(fault.Invalid, "use a shorter name", "the descriptor of %d bytes does not fit", len(desc.Text()))
	}
	if err := s.begin(desc.Text()); err != nil {
		return nil, err
	}
	for range cap(s.free) {
		s.free <- &packedGrain{data: make([]byte, 0, s.grain)}
	}
	for range p.Workers {
		s.work.Go(s.compress)
	}
	go s.write()
	return s, nil
}

// streamLayout is the header. In a file one directory and all tables stand in front; in a pipe nothing does.
func streamLayout(capacity, grain int64, tables bool) *header {
	h := &header{version: 3, flags: flagNewLine | flagCompressed | flagMarkers, capacity: uint64(capacity), grain: uint64(grain),
		gtes: 512, lineEnds: goodLineEnds, descOff: 1, descSize: embeddedDescSectors, compression: 1, gdOff: gdAtEnd}
	at := int64(1 + embeddedDescSectors)
	if tables {
		h.gdOff = uint64(at)
		at += gdSectors(h.numGTs()) + h.numGTs()*h.gtSectors()
	}
	h.overHead = uint64(roundUp(at, grain))
	return h
}

// begin writes what stands before the grains. The tables of a file are zeros until the end.
func (s *StreamWriter) begin(text []byte) error {
	s.directory = make([]uint32, s.h.numGTs())
	b := make([]byte, int64(1+embeddedDescSectors)*SectorSize)
	copy(b, s.h.encode())
	copy(b[SectorSize:], text)
	if _, err := s.out.Write(b); err != nil {
		return err
	}
	s.sector = int64(s.h.overHead)
	return s.pad(int64(s.h.overHead)*SectorSize - int64(len(b)))
}

func (s *StreamWriter) pad(n int64) error {
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		k, err := s.out.Write(zeros[:min(n, int64(len(zeros)))])
		if err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

// WriteGrains writes p at byte off of the disk, which is a multiple of the grain and not below what was written before; p ends at
// a multiple of the grain, or at the capacity. Grains of zeros take no space. p may be used again at once. Kinds: Invalid, and what
// the output returned meanwhile.
func (s *StreamWriter) WriteGrains(p []byte, off int64) error {
	end := off + int64(len(p))
	if off%s.grain != 0 || off < s.next || end > s.p.Capacity || end%s.grain != 0 && end != s.p.Capacity {
		return fault.New(fault.Invalid, "write whole grains in ascending order", "%d bytes at %d, after %d of %d", len(p), off, s.next, s.p.Capacity)
	}
	s.next = end
	for len(p) > 0 {
		n := min(s.grain, int64(len(p)))
		if !allZeros(p[:n]) {
			if err := s.add(p[:n], off/s.grain); err != nil {
				return err
			}
		}
		p, off = p[n:], off+n
	}
	return nil
}

func allZeros(p []byte) bool {
	for len(p) >= SectorSize {
		if !isZeroSector(p[:SectorSize]) {
			return false
		}
		p = p[SectorSize:]
	}
	return bytes.Equal(p, zeroSector[:len(p)])
}

// add hands a grain to the compressors, and its place in the order to the writer.
func (s *StreamWriter) add(p []byte, n int64) error {
	select {
	case <-s.failed:
		return s.err
	case g := <-s.free:
		g.n, g.data, g.err, g.done = n, append(g.data[:0], p...), nil, make(chan struct{})
		s.order <- g // the writer takes all until the channel is closed, after an error, too
		s.jobs <- g
		return nil
	}
}

func (s *StreamWriter) compress() {
	var z *zlib.Writer
	for g := range s.jobs {
		g.out.Reset()
		g.out.Write(make([]byte, grainRecordHead))
		if z == nil {
			z, g.err = zlib.NewWriterLevel(&g.out, s.p.Level)
		} else {
			z.Reset(&g.out)
		}
		if g.err == nil {
			_, g.err = z.Write(g.data)
		}
		if g.err == nil {
			g.err = z.Close()
		}
		close(g.done)
	}
}

// write is the goroutine that puts the grains out in their order.
func (s *StreamWriter) write() {
	defer close(s.wrote)
	for g := range s.order {
		<-g.done
		if s.err == nil {
			if s.err = g.err; s.err == nil {
				s.err = s.record(g)
			}
			if s.err != nil {
				close(s.failed)
			}
		}
		s.free <- g
	}
}

// record writes a compressed grain; in a pipe the table before it, if it is the first grain of another one.
func (s *StreamWriter) record(g *packedGrain) error {
	i := g.n / int64(s.h.gtes)
	if s.at == nil && i != s.tableOf {
		if err := s.endTable(); err != nil {
			return err
		}
		s.tableOf, s.table = i, make([]uint32, s.h.gtes)
	}
	t := s.table
	if s.at != nil {
		if t = s.tables[i]; t == nil {
			t = make([]uint32, s.h.gtes)
			s.tables[i] = t
		}
	}
	if s.sector >= maxStreamSector {
		return fault.New(fault.OutOfRange, "convert the disk to twoGbMaxExtentSparse", "a streamOptimized disk cannot be longer than 2 TiB of compressed data")
	}
	t[g.n%int64(s.h.gtes)] = uint32(s.sector)
	b := g.out.Bytes()
	binary.LittleEndian.PutUint64(b, uint64(g.n)*s.h.grain)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)-grainRecordHead))
	if rest := len(b) % SectorSize; rest != 0 {
		g.out.Write(zeroSector[:SectorSize-rest])
		b = g.out.Bytes()
	}
	return s.put(b)
}

func (s *StreamWriter) put(b []byte) error {
	_, err := s.out.Write(b)
	s.sector += int64(len(b)) / SectorSize
	return err
}

// block writes a marker and the metadata that it announces, and returns the sector of the latter.
func (s *StreamWriter) block(kind uint32, words []uint32) (int64, error) {
	n := ceilDiv(int64(len(words))*4, SectorSize)
	b := make([]byte, (1+n)*SectorSize)
	binary.LittleEndian.PutUint64(b, uint64(n))
	binary.LittleEndian.PutUint32(b[12:], kind)
	copy(b[SectorSize:], encodeEntries(words))
	at := s.sector + 1
	return at, s.put(b)
}

func (s *StreamWriter) endTable() error {
	if s.table == nil {
		return nil
	}
	at, err := s.block(markerTable, s.table)
	s.directory[s.tableOf], s.table = uint32(at), nil
	return err
}

// Close writes what stands behind the grains, and the tables, and waits for everything; making the output durable is the caller's.
func (s *StreamWriter) Close() error {
	if s.stop(); s.err != nil {
		return s.err
	}
	if s.at != nil {
		return s.endFile()
	}
	return s.endPipe()
}

// Abort gives the disk up.
func (s *StreamWriter) Abort() { s.stop() }

func (s *StreamWriter) stop() {
	if s.order == nil {
		return
	}
	close(s.jobs)
	s.work.Wait()
	close(s.order)
	<-s.wrote
	s.order, s.jobs = nil, nil
}

// endFile ends the stream, then fills in the tables and their directory.
func (s *StreamWriter) endFile() error {
	if err := s.put(make([]byte, SectorSize)); err != nil {
		return err
	}
	first := int64(s.h.gdOff) + gdSectors(s.h.numGTs())
	for i := range s.directory {
		s.directory[i] = uint32(first + int64(i)*s.h.gtSectors())
	}
	for i, t := range s.tables {
		b := make([]byte, s.h.gtSectors()*SectorSize)
		copy(b, encodeEntries(t))
		if _, err := s.at.WriteAt(b, int64(s.directory[i])*SectorSize); err != nil {
			return err
		}
	}
	b := make([]byte, gdSectors(s.h.numGTs())*SectorSize)
	copy(b, encodeEntries(s.directory))
	_, err := s.at.WriteAt(b, int64(s.h.gdOff)*SectorSize)
	return err
}

// endPipe writes the last table, the directory, the footer and the end of the stream.
func (s *StreamWriter) endPipe() error {
	err := s.endTable()
	if err == nil {
		var at int64
		if at, err = s.block(markerDir, s.directory); err == nil {
			f := *s.h
			f.gdOff = uint64(at)
			b := make([]byte, SectorSize, 3*SectorSize)
			binary.LittleEndian.PutUint64(b, 1)
			binary.LittleEndian.PutUint32(b[12:], markerFooter)
			err = s.put(append(append(b, f.encode()...), zeroSector[:]...))
		}
	}
	return errors.Join(err, s.err)
}
