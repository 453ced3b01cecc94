package vmdk

import (
	"encoding/binary"
	"fmt"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Magic numbers, as a little-endian u32 at the start of a file (Virtual Disk Format 5.0, "Hosted Sparse Extent Header"
// and "ESX Server Sparse Extent Header").
const (
	magicKDMV     = 0x564d444b
	magicCOWD     = 0x44574f43
	magicSESparse = 0xcafebabe
)

// Flags of the sparse header.
const (
	flagNewLine    = 1 << 0  // the four line-end bytes are valid
	flagRedundant  = 1 << 1  // a second grain directory with its own tables exists
	flagZeroGrain  = 1 << 2  // table entry 1 means: this grain reads as zeros
	flagCompressed = 1 << 16 // grains are compressed
	flagMarkers    = 1 << 17 // metadata is announced by markers
	flagKnown      = flagNewLine | flagRedundant | flagZeroGrain | flagCompressed | flagMarkers
)

const offUnclean = 72 // byte of uncleanShutdown in the header

// header is sector 0 of a hosted sparse extent. Offsets and sizes are sectors.
type header struct {
	version, flags    uint32
	capacity, grain   uint64
	descOff, descSize uint64
	gtes              uint32 // entries per grain table
	rgdOff, gdOff     uint64
	overHead          uint64
	unclean           bool
	lineEnds          [4]byte
	compression       uint16
	raw               [SectorSize]byte // what was read, so that unknown bytes survive a rewrite
	cowd              *cowdHeader      // set: a COWD header, of which raw, flags, descriptor and copies mean nothing
}

var goodLineEnds = [4]byte{'\n', ' ', '\r', '\n'}

func decodeHeader(b []byte) (*header, error) {
	if len(b) < SectorSize {
		return nil, fault.New(fault.Damaged, "", "the file is shorter than a sparse header")
	}
	le := binary.LittleEndian
	switch le.Uint32(b) {
	case magicKDMV:
	case magicCOWD:
		return nil, fault.New(fault.Invalid, "", "it is a COWD extent")
	case magicSESparse:
		return nil, unsupportedType("extent format", "seSparse")
	default:
		return nil, fault.New(fault.Damaged, "restore the extent from a backup", "sector 0 is not a sparse header: magic %#x", le.Uint32(b))
	}
	h := &header{
		version: le.Uint32(b[4:]), flags: le.Uint32(b[8:]), capacity: le.Uint64(b[12:]), grain: le.Uint64(b[20:]),
		descOff: le.Uint64(b[28:]), descSize: le.Uint64(b[36:]), gtes: le.Uint32(b[44:]), rgdOff: le.Uint64(b[48:]),
		gdOff: le.Uint64(b[56:]), overHead: le.Uint64(b[64:]), unclean: b[offUnclean] != 0, compression: le.Uint16(b[77:]),
	}
	copy(h.lineEnds[:], b[73:77])
	copy(h.raw[:], b)
	return h, nil
}

func (h *header) encode() []byte {
	le := binary.LittleEndian
	b := h.raw
	le.PutUint32(b[0:], magicKDMV)
	le.PutUint32(b[4:], h.version)
	le.PutUint32(b[8:], h.flags)
	le.PutUint64(b[12:], h.capacity)
	le.PutUint64(b[20:], h.grain)
	le.PutUint64(b[28:], h.descOff)
	le.PutUint64(b[36:], h.descSize)
	le.PutUint32(b[44:], h.gtes)
	le.PutUint64(b[48:], h.rgdOff)
	le.PutUint64(b[56:], h.gdOff)
	le.PutUint64(b[64:], h.overHead)
	b[offUnclean] = 0
	if h.unclean {
		b[offUnclean] = 1
	}
	copy(b[73:77], h.lineEnds[:])
	le.PutUint16(b[77:], h.compression)
	return b[:]
}

// stream tells that the extent is a streamOptimized one: every grain is compressed by deflate, and has a marker.
func (h *header) stream() bool {
	return h.flags&(flagCompressed|flagMarkers) == flagCompressed|flagMarkers && h.compression == 1
}

func (h *header) redundant() bool { return h.flags&flagRedundant != 0 }
func (h *header) coverage() int64 { return int64(h.gtes) * int64(h.grain) } // sectors per table
func (h *header) numGTs() int64   { return ceilDiv(int64(h.capacity), h.coverage()) }
func (h *header) gtSectors() int64 {
	return int64(h.gtes) * 4 / SectorSize
}

// gdSectors is the length of a directory of n tables.
func gdSectors(n int64) int64 { return ceilDiv(n*4, SectorSize) }

func ceilDiv(a, b int64) int64 { return (a + b - 1) / b }
func roundUp(a, b int64) int64 { return ceilDiv(a, b) * b }

// defect is a reason not to open an extent, with its number in the checker's catalogue.
type defect struct {
	code Code
	err  *fault.Fault
}

// defects are the reasons why nothing can be done with an extent of this header and this file size, worst first.
// Every sum stays below 2^62 because each term is bounded before it is used. What the extent costs in memory follows the
// length of its directory and the number of its grains; both are bounded here, because a sparse file of any size costs
// whoever makes it nothing.
func (h *header) defects(fileSize int64) []defect {
	if h.cowd != nil {
		return h.cowdDefects(fileSize)
	}
	var out []defect
	bad := func(code Code, kind fault.Kind, remedy, format string, args ...any) {
		out = append(out, defect{code, fault.New(kind, remedy, "sparse header: "+format, args...)})
	}
	if h.version < 1 || h.version > 3 {
		bad(BadVersion, fault.Unsupported, "", "version %d is not 1, 2 or 3", h.version)
	}
	if h.flags&flagNewLine != 0 && h.lineEnds != goodLineEnds {
		bad(TextTransfer, fault.Damaged, "copy the file again in binary mode", "the line-end bytes are % x: the file went through a text-mode transfer", h.lineEnds[:])
	}
	if u := h.flags >> 16 << 16 &^ flagKnown; u != 0 {
		bad(UnknownFlags, fault.Unsupported, "", "unknown incompatible flags %#x", u)
	}
	if !h.stream() && (h.flags&(flagCompressed|flagMarkers) != 0 || h.compression != 0) {
		bad(Compressed, fault.Unsupported, "convert it by the program that wrote it",
			"flags %#x with compression %d are not those of streamOptimized", h.flags, h.compression)
	}
	if h.grain < minGrainSectors || h.grain&(h.grain-1) != 0 || h.grain > maxGrainSectors {
		bad(BadGrainSize, fault.Damaged, "", "grain size %d is not a power of two from %d to %d sectors", h.grain, minGrainSectors, maxGrainSectors)
	}
	if h.gtes < 128 || h.gtes > 4096 || h.gtes&(h.gtes-1) != 0 {
		bad(BadTableSize, fault.Damaged, "", "%d entries per grain table is not a power of two from 128 to 4096", h.gtes)
	}
	if h.capacity == 0 || h.capacity > uint64(MaxCapacity/SectorSize) {
		bad(BadCapacity, fault.Damaged, "", "capacity %d sectors is not in 1..%d", h.capacity, MaxCapacity/SectorSize)
	}
	if len(out) > 0 {
		return out // what follows computes with these numbers
	}
	// One grain more: an entry of 2^32-1 names a grain that begins there.
	if most := (maxFileSectors + int64(h.grain)) * SectorSize; fileSize > most {
		bad(FileTooLong, fault.Damaged, "restore the file from a backup", "the file has %d bytes; table entries reach %d", fileSize, most)
	}
	if n := h.numGTs() * 4; n > maxDirectoryBytes {
		bad(DirectoryTooLong, fault.Damaged, "convert the disk to one with larger grains, by a program that reads it",
			"the grain directory has %d bytes, more than %d", n, maxDirectoryBytes)
	}
	if len(out) > 0 {
		return out
	}
	limit := uint64(fileSize / SectorSize)
	dir := uint64(gdSectors(h.numGTs()))
	if h.descOff != 0 && (h.descOff > limit || h.descSize > limit-h.descOff || h.descSize > maxDescriptorBytes/SectorSize) {
		bad(DescriptorBeyondEnd, fault.Damaged, "", "descriptor at sector %d of %d sectors is outside the file", h.descOff, h.descSize)
	}
	if h.stream() {
		return out // where its directory is openStream finds out
	}
	if h.gdOff == 0 || h.gdOff > limit || dir > limit-h.gdOff {
		bad(DirectoryBeyondEnd, fault.Damaged, "run vmdkctl check", "grain directory at sector %d of %d sectors is outside the file of %d sectors", h.gdOff, dir, limit)
	}
	if h.redundant() && (h.rgdOff == 0 || h.rgdOff > limit || dir > limit-h.rgdOff) {
		bad(DirectoryBeyondEnd, fault.Damaged, "run vmdkctl check", "redundant grain directory at sector %d is outside the file", h.rgdOff)
	}
	if h.overHead > limit {
		bad(BadOverhead, fault.Damaged, "", "metadata of %d sectors is longer than the file", h.overHead)
	}
	return out
}

// layout is a new extent's header for a capacity in sectors: the positions VMware's tools choose.
func layout(capacity, grain, descSectors int64) *header {
	h := &header{version: 1, flags: flagNewLine | flagRedundant, capacity: uint64(capacity), grain: uint64(grain),
		gtes: 512, lineEnds: goodLineEnds}
	at := int64(1)
	if descSectors > 0 {
		h.descOff, h.descSize = 1, uint64(descSectors)
		at += descSectors
	}
	tables := h.numGTs() * h.gtSectors()
	h.rgdOff = uint64(at)
	at += gdSectors(h.numGTs()) + tables
	h.gdOff = uint64(at)
	at += gdSectors(h.numGTs()) + tables
	h.overHead = uint64(roundUp(at, grain))
	return h
}

// directory is the content of a grain directory whose tables follow it.
func (h *header) directory(at uint64) []byte {
	n := h.numGTs()
	b := make([]byte, gdSectors(n)*SectorSize)
	first := int64(at) + gdSectors(n)
	for i := range n {
		binary.LittleEndian.PutUint32(b[i*4:], uint32(first+i*h.gtSectors()))
	}
	return b
}

func (h *header) String() string {
	return fmt.Sprintf("version %d, flags %#x, %d sectors in grains of %d", h.version, h.flags, h.capacity, h.grain)
}
