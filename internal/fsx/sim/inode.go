package sim

import (
	"bytes"
	"io"
	"maps"
)

const (
	pageSize   = 4096
	sectorSize = 512
)

// page is immutable once it is in an inode: writing replaces it, so trees share pages freely.
type page [pageSize]byte

// unwritten marks a reserved page that reads as zeros (what fallocate(2) makes).
var unwritten = new(page)

// inode is a file or a directory of one tree.
type inode struct {
	number  uint64
	isDir   bool
	size    int64
	pages   map[int64]*page   // file: by page number; absent is a hole
	entries map[string]uint64 // directory
	links   uint64            // names that point here; maintained by the tree of a live FS
	opens   int
	shared  bool // another tree uses pages and entries: copy before a change
}

func newInode(number uint64, isDir bool) *inode {
	n := &inode{number: number, isDir: isDir}
	if isDir {
		n.entries = map[string]uint64{}
	} else {
		n.pages = map[int64]*page{}
	}
	return n
}

// own makes the maps of n private before a change.
func (n *inode) own() {
	if !n.shared {
		return
	}
	n.pages, n.entries, n.shared = maps.Clone(n.pages), maps.Clone(n.entries), false
}

// share is a copy of n that costs nothing until one of the two changes.
func (n *inode) share() *inode {
	n.shared = true
	c := *n
	c.opens = 0
	return &c
}

func (n *inode) readAt(p []byte, off int64) (int, error) {
	if off >= n.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > n.size-off {
		p, eof = p[:n.size-off], io.EOF
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		part := p[done:min(len(p), done+pageSize-int(at%pageSize))]
		if pg := n.pages[at/pageSize]; pg != nil {
			copy(part, pg[at%pageSize:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	return len(p), eof
}

// newPages is how many pages a write or reservation of the range adds.
func (n *inode) newPages(off, length int64) int64 {
	if length == 0 {
		return 0
	}
	count := int64(0)
	for i := off / pageSize; i <= (off+length-1)/pageSize; i++ {
		if n.pages[i] == nil {
			count++
		}
	}
	return count
}

func (n *inode) writeAt(p []byte, off int64) {
	n.own()
	n.size = max(n.size, off+int64(len(p)))
	for len(p) > 0 {
		pg := new(page)
		if old := n.pages[off/pageSize]; old != nil {
			*pg = *old
		}
		done := copy(pg[off%pageSize:], p)
		n.pages[off/pageSize] = pg
		p, off = p[done:], off+int64(done)
	}
}

func (n *inode) truncate(size int64) {
	n.own()
	if size < n.size {
		n.clearRange(size, n.size-size, false)
		for i := range n.pages {
			if i*pageSize >= size {
				delete(n.pages, i)
			}
		}
	}
	n.size = size
}

func (n *inode) allocate(off, length int64) {
	n.own()
	for i := off / pageSize; i <= (off+length-1)/pageSize; i++ {
		if n.pages[i] == nil {
			n.pages[i] = unwritten
		}
	}
	n.size = max(n.size, off+length)
}

// clearRange zeroes the range up to the size; whole pages become holes, or stay reserved with keep.
func (n *inode) clearRange(off, length int64, keep bool) {
	n.own()
	end := min(off+length, n.size)
	for off < end {
		i, from := off/pageSize, off%pageSize
		to := min(pageSize, from+end-off)
		whole := from == 0 && (to == pageSize || off+to == n.size)
		switch old := n.pages[i]; {
		case whole && keep:
			n.pages[i] = unwritten
		case whole:
			delete(n.pages, i)
		case old != nil && old != unwritten:
			pg := *old
			clear(pg[from:to])
			n.pages[i] = &pg
		case keep:
			n.pages[i] = unwritten
		}
		off += to - from
	}
}

// seekData is the first run of written pages at or after off.
func (n *inode) seekData(off int64) (start, end int64, err error) {
	pages := (n.size + pageSize - 1) / pageSize
	isData := func(i int64) bool { return n.pages[i] != nil && n.pages[i] != unwritten }
	if len(n.pages) == 0 {
		return 0, 0, io.EOF
	}
	i := off / pageSize
	for ; i < pages && !isData(i); i++ {
	}
	if i >= pages || off >= n.size {
		return 0, 0, io.EOF
	}
	start = max(off, i*pageSize)
	for ; i < pages && isData(i); i++ {
	}
	return start, min(n.size, i*pageSize), nil
}

// equal tells whether two inodes read alike.
func (n *inode) equal(m *inode) bool {
	if n.isDir != m.isDir || n.size != m.size || !maps.Equal(n.entries, m.entries) {
		return false
	}
	return n.covers(m) && m.covers(n)
}

func (n *inode) covers(m *inode) bool {
	for i, pg := range n.pages {
		other := m.pages[i]
		if other == nil {
			other = unwritten
		}
		if pg != other && !bytes.Equal(pg[:], other[:]) {
			return false
		}
	}
	return true
}
