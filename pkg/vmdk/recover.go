package vmdk

import (
	"encoding/binary"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Recover makes a link that was not closed cleanly fit for writing: it reads all tables, makes table and redundant table
// equal, and refuses what no crash of a correct writer leaves (run Check to see it in full). The unclean mark stays until
// CloseClean.
//
// Writers store the redundant table first, or the table first; either way every non-zero entry names a grain that was
// durable before, so "non-zero wins" loses nothing. Where both copies name different places, the guest had discarded and
// written again within one flush; the table's place was not reused before that flush was durable, so it still holds the
// last flushed content: the table wins, and the other place is leaked.
//
//  1. read and compare everything; [nothing is written yet]
//  2. write the entries that differ, redundant table first, and sync; [cut off, the next Recover finds fewer]
//  3. cut the file behind the last grain that an entry names: the rest was never acknowledged by a flush.
func (l *Link) Recover() error {
	for _, e := range l.extents {
		if e.sp == nil || !e.sp.h.unclean || !e.writable {
			continue
		}
		if err := e.sp.recover(); err != nil {
			return fault.Wrap(err, "extent %s", e.Name)
		}
	}
	return nil
}

func (s *sparse) recover() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.h.flags&flagZeroGrain == 0 {
		s.zeroOnes()
	}
	used := newGrainSet(s)
	var mends []mend
	for i := range s.gd {
		m, err := s.recoverTable(int64(i), used)
		if err != nil {
			return err
		}
		mends = append(mends, m...)
	}
	if err := s.mendTables(mends); err != nil {
		return err
	}
	s.alloc.mu.Lock()
	defer s.alloc.mu.Unlock()
	if next := roundUp(max(used.top, s.metadataEnd()), s.grain); next < s.alloc.next {
		if err := s.file.Truncate(next * SectorSize); err != nil {
			return err
		}
		s.alloc.next, s.alloc.end = next, next
	}
	return nil
}

// zeroOnes drops directory entries of 1, which mean nothing without the flag.
func (s *sparse) zeroOnes() {
	for i, v := range s.gd {
		if v == 1 {
			s.gd[i] = 0
		}
	}
}

// metadataEnd is the first sector behind header, directories and tables.
func (s *sparse) metadataEnd() int64 {
	dir := gdSectors(s.h.numGTs())
	end := max(int64(s.h.overHead), int64(s.h.gdOff)+dir)
	if s.h.redundant() {
		end = max(end, int64(s.h.rgdOff)+dir)
	}
	for _, d := range [][]uint32{s.gd, s.rgd} {
		for _, v := range d {
			end = max(end, int64(v)+s.h.gtSectors())
		}
	}
	return end
}

// mend is one entry to write at a byte of the file.
type mend struct {
	at    int64
	entry uint32
}

// readTable reads the table at a sector; nil where there is none, so that missing ones cost nothing.
func (s *sparse) readTable(at uint32) ([]uint32, error) {
	if at <= 1 {
		return nil, nil
	}
	b := make([]byte, s.h.gtes*4)
	if err := readFull(s.file, b, int64(at)*SectorSize); err != nil {
		return nil, err
	}
	return decodeEntries(b), nil
}

func (s *sparse) recoverTable(i int64, used *grainSet) ([]mend, error) {
	gt, err := s.readTable(s.gd[i])
	if err != nil {
		return nil, err
	}
	rgt := gt
	if s.rgd != nil && s.gd[i] > 1 && s.rgd[i] > 1 {
		if rgt, err = s.readTable(s.rgd[i]); err != nil {
			return nil, err
		}
	}
	var mends []mend
	for j := range gt {
		g := i*int64(s.h.gtes) + int64(j)
		v := gt[j]
		if v == 0 {
			v = rgt[j]
		}
		if v != gt[j] {
			mends = append(mends, mend{int64(s.gd[i])*SectorSize + int64(j)*4, v})
		}
		if v != rgt[j] {
			mends = append(mends, mend{int64(s.rgd[i])*SectorSize + int64(j)*4, v})
		}
		if v > 1 && !used.add(v) || v == 1 && s.h.flags&flagZeroGrain == 0 {
			return nil, fault.New(fault.Damaged, "run vmdkctl check, and restore the disk or convert what is readable",
				"grain %d is said to be at sector %d, which is metadata, outside the file, or another grain's", g, v)
		}
	}
	return mends, nil
}

func (s *sparse) mendTables(mends []mend) error {
	if len(mends) == 0 {
		return nil
	}
	for _, m := range mends {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], m.entry)
		if _, err := s.file.WriteAt(b[:], m.at); err != nil {
			return fault.Wrap(err, "mend a grain table")
		}
	}
	return fault.Wrap(s.file.Datasync(), "sync mended grain tables")
}

// grainSet remembers which places of a file are taken. Its memory follows what is taken, not the file's size: pieces of
// one bit per grain that are made when they are needed; and for images with unaligned grains (which exist) the grains
// around them.
type grainSet struct {
	s         *sparse
	pieces    []*[pieceGrains / 64]uint64
	unaligned map[uint32]struct{}
	top       int64 // first sector behind the last place taken
	count     int64
	limit     int64 // sectors of the file
}

const pieceGrains = 1 << 16

func newGrainSet(s *sparse) *grainSet {
	limit := s.alloc.end
	return &grainSet{s: s, limit: limit, pieces: make([]*[pieceGrains / 64]uint64, limit/s.grain/pieceGrains+1), unaligned: map[uint32]struct{}{}}
}

// add takes a place for a grain; false if it is no place, or taken, in whole or in part.
func (u *grainSet) add(sector uint32) bool {
	at, g := int64(sector), u.s.grain
	if at < int64(u.s.h.overHead) || at >= u.limit {
		return false
	}
	var ok bool
	if at%g == 0 {
		ok = !u.taken(at/g) && !u.near(at)
		u.take(at / g)
	} else {
		ok = !u.taken(at/g) && !u.taken(at/g+1) && !u.near(at)
		u.unaligned[sector] = struct{}{}
	}
	u.top = max(u.top, at+g)
	u.count++
	return ok
}

func (u *grainSet) taken(i int64) bool {
	p := i / pieceGrains
	return p < int64(len(u.pieces)) && u.pieces[p] != nil && u.pieces[p][i%pieceGrains/64]>>(i%64)&1 == 1
}

// take marks a place, if it lies in the file.
func (u *grainSet) take(i int64) {
	p := i / pieceGrains
	if p >= int64(len(u.pieces)) {
		return
	}
	if u.pieces[p] == nil {
		u.pieces[p] = new([pieceGrains / 64]uint64)
	}
	u.pieces[p][i%pieceGrains/64] |= 1 << (i % 64)
}

// near tells that an unaligned place overlaps [at, at+grain).
func (u *grainSet) near(at int64) bool {
	if len(u.unaligned) == 0 {
		return false
	}
	for x := at - u.s.grain + 1; x < at+u.s.grain; x++ {
		if _, ok := u.unaligned[uint32(x)]; ok {
			return true
		}
	}
	return false
}
