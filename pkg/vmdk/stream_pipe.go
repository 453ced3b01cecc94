package vmdk

import (
	"bufio"
	"errors"
	"io"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// StreamReader reads a streamOptimized disk from its first byte to its last, as it comes out of a pipe: by its markers, never by its
// tables. Not concurrent.
type StreamReader struct {
	in   *bufio.Reader
	h    *header
	desc *Descriptor
	at   int64 // sector
	buf  []byte
	out  []byte
	done bool
}

// NewStreamReader reads header and descriptor. Kinds: Damaged, Unsupported, and what in returns.
func NewStreamReader(in io.Reader) (*StreamReader, error) {
	s := &StreamReader{in: bufio.NewReaderSize(in, 1<<20)}
	b := make([]byte, SectorSize)
	if _, err := io.ReadFull(s.in, b); err != nil {
		return nil, cutOff(err, "the header")
	}
	var err error
	if s.h, err = decodeHeader(b); err != nil {
		return nil, err
	}
	if !s.h.stream() {
		return nil, fault.New(fault.Unsupported, "give its name instead: only streamOptimized disks can be read from a pipe", "it is a sparse extent of another kind")
	}
	if ds := s.h.defects((maxFileSectors - 1) * SectorSize); len(ds) > 0 { // how long the stream will be nobody knows
		return nil, ds[0].err
	}
	if s.h.descOff == 0 || s.h.descSize == 0 || s.h.descOff > s.h.overHead && s.h.overHead > 0 {
		return nil, fault.New(fault.Damaged, "", "it has no descriptor in front")
	}
	s.at = 1
	text := make([]byte, s.h.descSize*SectorSize)
	if err := s.skip(int64(s.h.descOff)); err != nil {
		return nil, err
	}
	if err := s.read(text); err != nil {
		return nil, cutOff(err, "the descriptor")
	}
	clean, _, _ := strings.Cut(string(text), "\x00")
	if s.desc, err = ParseDescriptor([]byte(clean)); err != nil {
		return nil, err
	}
	if t := s.desc.Type(); t != StreamOptimized || s.desc.IsChild() {
		return nil, unsupportedType("createType in a pipe", string(t))
	}
	s.out = make([]byte, int64(s.h.grain)*SectorSize)
	return s, s.skip(int64(s.h.overHead))
}

func cutOff(err error, what string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fault.New(fault.Damaged, "send the whole disk again", "the stream ends in %s", what)
	}
	return err
}

// Size is the capacity in bytes.
func (s *StreamReader) Size() int64 { return int64(s.h.capacity) * SectorSize }

// Descriptor is a copy of the disk's descriptor.
func (s *StreamReader) Descriptor() *Descriptor { return s.desc.Clone() }

func (s *StreamReader) read(p []byte) error {
	_, err := io.ReadFull(s.in, p)
	s.at += int64(len(p)) / SectorSize
	return err
}

// skip goes on to a sector; one that is behind already is where the reader is.
func (s *StreamReader) skip(to int64) error {
	if to <= s.at {
		return nil
	}
	if _, err := io.CopyN(io.Discard, s.in, (to-s.at)*SectorSize); err != nil {
		return cutOff(err, "its metadata")
	}
	s.at = to
	return nil
}

// Next is the next grain: where on the disk it lies, and its content, which is valid until the next call. Grains that are missing are
// zeros; their order is the stream's. io.EOF: the stream has ended as it should. Kinds: Damaged.
func (s *StreamReader) Next() (off int64, content []byte, err error) {
	for !s.done {
		head, err := s.in.Peek(16)
		if err != nil {
			return 0, nil, cutOff(err, "front of its end marker")
		}
		m, err := decodeMarker(head, s.h)
		if err != nil {
			return 0, nil, fault.Wrap(err, "sector %d", s.at)
		}
		if m.end {
			s.done = true
			break
		}
		if m.packed == 0 {
			if err := s.skip(s.at + m.sectors); err != nil {
				return 0, nil, err
			}
			continue
		}
		n := m.sectors * SectorSize
		if int64(cap(s.buf)) < n {
			s.buf = make([]byte, packedMost(int64(len(s.out)))+2*SectorSize)
		}
		at := s.at
		if err := s.read(s.buf[:n]); err != nil {
			return 0, nil, cutOff(err, "a grain")
		}
		off := int64(m.value) * SectorSize
		least := min(int64(len(s.out)), s.Size()-off)
		if err := inflateGrain(s.out, s.buf[grainRecordHead:grainRecordHead+m.packed], least); err != nil {
			return 0, nil, fault.Wrap(err, "grain at sector %d", at)
		}
		return off, s.out[:least], nil
	}
	return 0, nil, io.EOF
}
