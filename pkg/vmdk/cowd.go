package vmdk

import (
	"encoding/binary"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// COWD is ESXi's format of deltas (Virtual Disk Format 5.0, "ESX Server Sparse Extents"). A COWD extent is a sparse extent
// whose header is another one, whose tables have 4096 entries and are made when they are first needed, which has no copies
// of tables, and no entry that means zeros.
//
// Its header names the first free sector of the file. Here the end of the file is what counts: the file is extended before
// a grain is handed out, so nothing lies behind its end. For readers that go by the header, the free sector is set to
// the new end whenever the file is extended, and is durable before any entry names a sector there: a crash leaves it too
// high, never too low.
const (
	cowdHeaderBytes = 2048
	cowdEntries     = 4096
	cowdDirectory   = 4 // first sector of the directory, behind the header
	cowdFlags       = 3 // what ESXi writes
)

// cowdHeader is what a COWD header has beside the fields of header.
type cowdHeader struct {
	directories uint32 // entries of the grain directory
	free        uint32 // first sector that was never used
	raw         [cowdHeaderBytes]byte
}

// readHeader reads the header of a sparse extent of either format.
func readHeader(f fsx.File) (*header, error) {
	b := make([]byte, SectorSize)
	if err := readFull(f, b, 0); err != nil {
		return nil, err
	}
	if magicOf(b) != magicCOWD {
		return decodeHeader(b)
	}
	b = make([]byte, cowdHeaderBytes)
	if err := readFull(f, b, 0); err != nil {
		return nil, err
	}
	return decodeCowd(b), nil
}

// decodeCowd reads a COWD header; b is as long as one.
func decodeCowd(b []byte) *header {
	le := binary.LittleEndian
	c := &cowdHeader{directories: le.Uint32(b[24:]), free: le.Uint32(b[28:])}
	copy(c.raw[:], b)
	h := &header{cowd: c, version: le.Uint32(b[4:]), capacity: uint64(le.Uint32(b[12:])), grain: uint64(le.Uint32(b[16:])),
		gtes: cowdEntries, gdOff: uint64(le.Uint32(b[20:])), unclean: le.Uint32(b[cowdOffUnclean:]) != 0}
	h.overHead = cowdDirectory
	if h.gdOff == cowdDirectory && h.grain > 0 { // after a growth the directory may lie among the grains
		h.overHead += uint64(gdSectors(h.numGTs()))
	}
	return h
}

func (h *header) encodeCowd() []byte {
	le := binary.LittleEndian
	b := h.cowd.raw
	le.PutUint32(b[0:], magicCOWD)
	le.PutUint32(b[4:], h.version)
	le.PutUint32(b[12:], uint32(h.capacity))
	le.PutUint32(b[16:], uint32(h.grain))
	le.PutUint32(b[20:], uint32(h.gdOff))
	le.PutUint32(b[24:], h.cowd.directories)
	le.PutUint32(b[28:], h.cowd.free)
	le.PutUint32(b[cowdOffUnclean:], 0)
	if h.unclean {
		b[cowdOffUnclean] = 1
	}
	return b[:]
}

// cowdLayout is the header of a new COWD extent.
func cowdLayout(capacity, grain int64) *header {
	c := &cowdHeader{}
	binary.LittleEndian.PutUint32(c.raw[8:], cowdFlags)
	h := &header{cowd: c, version: 1, capacity: uint64(capacity), grain: uint64(grain), gtes: cowdEntries, gdOff: cowdDirectory}
	c.directories = uint32(h.numGTs())
	h.overHead = uint64(cowdDirectory + gdSectors(h.numGTs()))
	c.free = uint32(roundUp(int64(h.overHead), grain))
	return h
}

// cowdContent writes a new extent: the header and an empty directory, which is a hole.
func cowdContent(f fsx.File, h *header) error {
	if err := f.Truncate(int64(h.cowd.free) * SectorSize); err != nil {
		return err
	}
	if _, err := f.WriteAt(h.encodeCowd(), 0); err != nil {
		return err
	}
	return f.Datasync()
}

// cowdDefects are the reasons why nothing can be done with an extent of this header; see defects.
func (h *header) cowdDefects(fileSize int64) []defect {
	var out []defect
	bad := func(code Code, kind fault.Kind, remedy, format string, args ...any) {
		out = append(out, defect{code, fault.New(kind, remedy, "COWD header: "+format, args...)})
	}
	if h.version != 1 {
		bad(BadVersion, fault.Unsupported, "", "version %d is not 1", h.version)
	}
	if h.grain < 1 || h.grain&(h.grain-1) != 0 || h.grain > maxGrainSectors {
		bad(BadGrainSize, fault.Damaged, "", "grain size %d is not a power of two from 1 to %d sectors", h.grain, maxGrainSectors)
	}
	if h.capacity == 0 {
		bad(BadCapacity, fault.Damaged, "", "capacity is 0 sectors")
	}
	if len(out) > 0 {
		return out
	}
	if most := (maxFileSectors + int64(h.grain)) * SectorSize; fileSize > most {
		bad(FileTooLong, fault.Damaged, "restore the file from a backup", "the file has %d bytes; table entries reach %d", fileSize, most)
		return out
	}
	limit, dir := uint64(fileSize/SectorSize), uint64(gdSectors(h.numGTs()))
	if h.gdOff < cowdDirectory || h.gdOff > limit || dir > limit-h.gdOff {
		bad(DirectoryBeyondEnd, fault.Damaged, "run vmdkctl check", "grain directory at sector %d of %d sectors is outside the file of %d sectors", h.gdOff, dir, limit)
	}
	if int64(h.cowd.directories) < h.numGTs() {
		bad(DirectoryBeyondEnd, fault.Damaged, "run vmdkctl check", "the grain directory has %d entries, the capacity needs %d", h.cowd.directories, h.numGTs())
	}
	return out
}

// writeCowd writes the header and syncs. Sector 0, which holds everything but the unclean mark, is whole or as before after
// a crash. Where only one of sector 0 and the mark reaches the disk, the free sector is too high, or the mark is set
// still: both are safe.
func (s *sparse) writeCowd() error {
	if _, err := s.file.WriteAt(s.h.encodeCowd(), 0); err != nil {
		return fault.Wrap(err, "extent %s: write header", s.name)
	}
	return fault.Wrap(s.file.Datasync(), "extent %s: sync header", s.name)
}

// cowdFree records that the file has so many sectors, before any of the new ones is used.
func (s *sparse) cowdFree(end int64) error {
	s.h.cowd.free = uint32(min(end, maxFileSectors-1))
	_, err := s.file.WriteAt(s.h.encodeCowd()[:SectorSize], 0)
	return fault.Wrap(err, "extent %s: write header", s.name)
}

// growCowd is step 2 of Grow: a directory for the capacity in h, the grown header, in its place if it fits into its last
// sector, else at the end of the file. The tables of the new part are made when they are needed.
func (s *sparse) growCowd(h *header) ([]uint32, error) {
	c := *h.cowd
	h.cowd = &c
	n, have := h.numGTs(), int64(len(s.gd))
	if n <= have {
		return s.gd, nil
	}
	at := int64(h.gdOff)
	if gdSectors(n) > gdSectors(have) {
		var err error
		if at, err = s.alloc.metadata(gdSectors(n)); err != nil {
			return nil, err
		}
	}
	gd, err := s.writeDirectory(at, gdSectors(n), s.gd, n)
	if err != nil {
		return nil, err
	}
	c.free, c.directories = s.h.cowd.free, uint32(n)
	h.gdOff = uint64(at)
	return gd, fault.Wrap(s.file.Datasync(), "extent %s: sync the new directory", s.name)
}
