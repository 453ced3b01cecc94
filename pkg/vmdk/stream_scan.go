package vmdk

import (
	"encoding/binary"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// maxScanned bounds the tables that a scan makes: those of 2 TiB in grains of 64 KiB.
const maxScanned = 65536

// scan rebuilds the tables from the markers, from the first grain on. A stream that ends before its directory has lost grains, and
// nobody knows how many: it is not opened, because what is missing would read as zeros. Kinds: Damaged, Exhausted.
func (s *stream) scan() error {
	made := 0
	complete, err := s.walk(s.firstRecord(), func(lba uint64, sector int64) error {
		g := int64(lba) / int64(s.h.grain)
		t := s.tables[g/int64(s.h.gtes)].Load()
		if t == nil {
			if made++; made > maxScanned {
				return fault.New(fault.Exhausted, "convert it by a program that writes a grain directory", "more than %d grain tables", maxScanned)
			}
			fresh := make([]uint32, s.h.gtes)
			t = &fresh
			s.tables[g/int64(s.h.gtes)].Store(t)
		}
		(*t)[g%int64(s.h.gtes)] = uint32(sector)
		return nil
	})
	if err == nil && !complete {
		err = fault.New(fault.Damaged, "send the whole disk again, or run vmdkctl repair, which keeps what is there", "the stream was cut off")
	}
	return err
}

// firstRecord is the sector behind header and descriptor.
func (s *stream) firstRecord() int64 {
	at := max(int64(s.h.overHead), 1)
	if s.h.descOff > 0 {
		at = max(at, int64(s.h.descOff+s.h.descSize))
	}
	return at
}

// walk calls grain for the record of each grain from a sector on, until the end of the stream or of the file; complete tells that it
// met what stands behind the last grain.
func (s *stream) walk(at int64, grain func(lba uint64, sector int64) error) (complete bool, err error) {
	b := make([]byte, 16)
	for end := min(s.size/SectorSize, maxFileSectors); at < end; {
		if err := readFull(s.file, b, at*SectorSize); err != nil {
			return false, fault.Wrap(err, "marker at sector %d", at)
		}
		m, err := decodeMarker(b, s.h)
		if err != nil {
			return complete, fault.Wrap(err, "sector %d", at)
		}
		switch {
		case m.end:
			return true, nil
		case m.packed > 0 && at+m.sectors <= end:
			if err := grain(m.value, at); err != nil {
				return false, err
			}
		}
		complete = complete || m.directory
		at += m.sectors
	}
	return complete, nil
}

// marker is what stands at a sector of a stream.
type marker struct {
	value   uint64 // of a grain: its first guest sector
	packed  int64  // of a grain: bytes of its data
	sectors int64  // until the next marker
	end     bool
	// directory: no grain follows
	directory bool
}

// decodeMarker reads the first 16 bytes of a sector. Kinds: Damaged.
func decodeMarker(b []byte, h *header) (m marker, err error) {
	le := binary.LittleEndian
	m.value = le.Uint64(b)
	size, typ := int64(le.Uint32(b[8:])), le.Uint32(b[12:])
	if size != 0 {
		if m.value >= h.capacity || m.value%h.grain != 0 || size > packedMost(int64(h.grain)*SectorSize) {
			return m, fault.New(fault.Damaged, "restore the file", "a grain of %d bytes for sector %d of the disk", size, m.value)
		}
		m.packed, m.sectors = size, ceilDiv(grainRecordHead+size, SectorSize)
		return m, nil
	}
	var most int64
	switch typ {
	case markerEnd:
		m.end = m.value == 0
	case markerTable:
		most = h.gtSectors()
	case markerDir:
		most, m.directory = gdSectors(h.numGTs()), true
	case markerFooter:
		most = 1
	case markerProgress:
		m.value = 0
	}
	if !m.end && typ != markerProgress && (m.value == 0 || int64(m.value) > most) {
		return m, fault.New(fault.Damaged, "restore the file", "a marker of type %d for %d sectors", typ, m.value)
	}
	m.sectors = 1 + int64(m.value)
	return m, nil
}
