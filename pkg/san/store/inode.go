package store

import (
	"cmp"
	"slices"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
)

// inode is a file or a directory.
type inode struct {
	number  uint64
	isDir   bool
	entries map[string]uint64 // directory; under Store.mu

	// mu: reads and writes of what is allocated hold it shared, everything that changes size or runs exclusively, and with
	// it Store.mu. So either lock is enough to look at them.
	mu    sync.RWMutex
	size  int64
	runs  []run // ascending
	stale bool  // bytes between the end and the end of its extent may be something else than zeros
	cut   uint64

	// Under Store.mu.
	links    uint64
	opens    int
	changed  uint64 // the generation that has its last change
	unlinked uint64 // the generation that has it no more
	encoded  []byte // its part of a record, nil after a change
	locks    map[*file]fsx.LockMode
}

// find is the first run that ends behind extent at.
func (n *inode) find(at uint32) int {
	i, _ := slices.BinarySearchFunc(n.runs, at, func(r run, at uint32) int { return cmp.Compare(int64(r.at)+int64(r.n), int64(at)+1) })
	return i
}

// piece is a part of a file that lies together on the LUN, or, with lun < 0, nowhere.
type piece struct{ off, n, lun int64 }

// pieces cuts [off, off+n) of the file, which may reach behind its end, where its places on the LUN end.
func (l *layout) pieces(runs []run, first int, off, n int64, visit func(piece) error) error {
	end := off + n
	for i := first; off < end; i++ {
		if i == len(runs) {
			return visit(piece{off, end - off, -1})
		}
		r := runs[i]
		from, to := int64(r.at)*l.extentSize, (int64(r.at)+int64(r.n))*l.extentSize
		if from > off {
			hole := min(from, end) - off
			if err := visit(piece{off, hole, -1}); err != nil {
				return err
			}
			off += hole
		}
		if part := min(to, end) - off; part > 0 {
			if err := visit(piece{off, part, l.place(r.lun) + off - from}); err != nil {
				return err
			}
			off += part
		}
	}
	return nil
}

func (s *Store) pieces(n *inode, off, length int64, visit func(piece) error) error {
	return s.layout.pieces(n.runs, n.find(uint32(off/s.layout.extentSize)), off, length, visit)
}

// covered tells whether all of the range has a place.
func (s *Store) covered(n *inode, off, length int64) bool {
	end := off + length
	for i := n.find(uint32(off / s.layout.extentSize)); off < end; i++ {
		if i == len(n.runs) || int64(n.runs[i].at)*s.layout.extentSize > off {
			return false
		}
		off = (int64(n.runs[i].at) + int64(n.runs[i].n)) * s.layout.extentSize
	}
	return true
}

// merged is old with more runs, which have places of their own; neighbours on both sides become one.
func merged(old, more []run) []run {
	all := append(slices.Clone(old), more...)
	slices.SortFunc(all, func(a, b run) int { return cmp.Compare(a.at, b.at) })
	out := all[:0]
	for _, r := range all {
		if k := len(out) - 1; k >= 0 && out[k].at+out[k].n == r.at && out[k].lun+out[k].n == r.lun {
			out[k].n += r.n
			continue
		}
		out = append(out, r)
	}
	return out
}

// without splits runs into those outside extents [from, to) and those inside.
func without(runs []run, from, to int64) (kept, cut []run) {
	for _, r := range runs {
		start, end := int64(r.at), int64(r.at)+int64(r.n)
		part := func(a, b int64) (run, bool) {
			a, b = max(a, start), min(b, end)
			return run{uint32(a), r.lun + uint32(a-start), uint32(b - a)}, a < b
		}
		if p, ok := part(0, from); ok {
			kept = append(kept, p)
		}
		if p, ok := part(from, to); ok {
			cut = append(cut, p)
		}
		if p, ok := part(to, end); ok {
			kept = append(kept, p)
		}
	}
	return kept, cut
}
