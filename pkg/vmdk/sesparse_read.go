package vmdk

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

const (
	seGrainBytes = seGrainSectors * SectorSize
	seTablesKept = 512 // tables that stay in memory: 16 MiB
)

// seReader reads an SESparse extent as it is when its journal is applied; nothing is written.
type seReader struct {
	m *seMap

	mu     sync.Mutex
	tables map[int64][]uint64 // by table; nil: there is none
	order  []int64            // of loading
}

// openSESparse opens an SESparse extent for reading. The file belongs to the result. Kinds: Damaged.
func openSESparse(name string, file fsx.File, x ExtentLine, size int64) (*seReader, error) {
	m := &seMap{name: name, file: file, size: size, used: newPlaceSet()}
	c := &checker{ctx: context.Background(), name: name}
	ok, err := c.seHeader(m, x)
	var pending bool
	if err == nil && ok {
		pending, err = c.seVolatile(m)
	}
	if err != nil {
		return nil, err
	}
	for _, p := range c.r.Problems {
		if p.Severity == Fatal {
			return nil, fault.New(fault.Damaged, p.Remedy, "%s", p.Message)
		}
	}
	if pending {
		if err := m.replay(); err != nil {
			return nil, err
		}
	}
	return &seReader{m: m, tables: map[int64][]uint64{}}, nil
}

func (s *seReader) grainBytes() int64 { return seGrainBytes }

func (s *seReader) close() error { return s.m.file.Close() }

// table is the table with this index; nil: there is none.
func (s *seReader) table(i int64) ([]uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.tables[i]; ok {
		return t, nil
	}
	t, err := s.load(i)
	if err != nil {
		return nil, fault.Wrap(err, "grain table %d", i)
	}
	if s.order = append(s.order, i); len(s.order) > seTablesKept {
		delete(s.tables, s.order[0])
		s.order = s.order[1:]
	}
	s.tables[i] = t
	return t, nil
}

func (s *seReader) load(i int64) ([]uint64, error) {
	var b [8]byte
	if err := s.m.read(b[:], s.m.region[seDirectory].from*SectorSize+i*8); err != nil {
		return nil, err
	}
	e := binary.LittleEndian.Uint64(b[:])
	if e == 0 {
		return nil, nil
	}
	at := s.m.region[seTables].from + int64(uint32(e))*seTableSectors
	if e>>32 != 0x10000000 || at+seTableSectors > s.m.region[seTables].to {
		return nil, fault.New(fault.Damaged, "run vmdkctl check", "its directory entry is %#x", e)
	}
	raw := make([]byte, seTableEntries*8)
	if err := s.m.read(raw, at*SectorSize); err != nil {
		return nil, err
	}
	t := make([]uint64, seTableEntries)
	for j := range t {
		t[j] = binary.LittleEndian.Uint64(raw[j*8:])
	}
	return t, nil
}

// grain is the state of a grain and, if it is allocated, its byte in the file.
func (s *seReader) grain(g int64) (State, int64, error) {
	t, err := s.table(g / seTableEntries)
	if err != nil || t == nil {
		return Unallocated, 0, err
	}
	e := t[g%seTableEntries]
	switch {
	case e == 0:
		return Unallocated, 0, nil
	case e>>60 == 1, e>>60 == 2: // given back by the guest, or written with zeros
		return Zeroed, 0, nil
	case e>>60 == 3:
		at := (s.m.region[seGrains].from + int64(unrotate(e))*seGrainSectors) * SectorSize
		if at < 0 || at >= s.m.size || at >= s.m.region[seGrains].to*SectorSize {
			return 0, 0, fault.New(fault.Damaged, "run vmdkctl check", "grain %d is said to be at byte %d, outside the file", g, at)
		}
		return Allocated, at, nil
	}
	return 0, 0, fault.New(fault.Damaged, "run vmdkctl check", "the entry of grain %d is %#x", g, e)
}

func (s *seReader) run(off, n int64) (Run, error) {
	g := off / seGrainBytes
	state, at, err := s.grain(g)
	if err != nil {
		return Run{}, err
	}
	r := Run{State: state, Len: min(n, (g+1)*seGrainBytes-off)}
	if state == Allocated {
		r.Offset = at + off%seGrainBytes
	}
	for r.Len < n {
		g++
		next, nextAt, err := s.grain(g)
		if err != nil || next != state || state == Allocated && nextAt != r.Offset+r.Len {
			break // an error is told by the next call, for the range that it concerns
		}
		r.Len += min(seGrainBytes, n-r.Len)
	}
	return r, nil
}

func (s *seReader) read(p []byte, off int64) error {
	for len(p) > 0 {
		r, err := s.run(off, int64(len(p)))
		if err != nil {
			return err
		}
		if r.State != Allocated {
			return fault.New(fault.Internal, "", "byte %d is not allocated", off)
		}
		n, err := s.m.file.ReadAt(p[:r.Len], r.Offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if clear(p[n:r.Len]); int64(n) <= r.Len-seGrainBytes { // a file may end inside its last grain
			return fault.New(fault.Damaged, "restore the file, it was cut off", "it ends before byte %d", r.Offset+r.Len)
		}
		p, off = p[r.Len:], off+r.Len
	}
	return nil
}
