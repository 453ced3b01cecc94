package store

import (
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
)

// Sizes of the parts of a catalogue, in bytes, and what one may hold.
const (
	recordHeader = 96
	inodeHeader  = 24
	runSize      = 12
	entryHeader  = 9
	heldSize     = 16
	grantHeader  = 20

	maxName      = 255
	maxInodes    = 1 << 20
	maxGrants    = 4096
	maxGrantData = 2048
	maxFileSize  = 64 << 40
)

const (
	kindFile = 1
	kindDir  = 2
)

const rootInode = 1

// run is n extents of a file, from the file's extent number at, that lie one after the other on the LUN from lun on.
type run struct{ at, lun, n uint32 }

// held is extents that were freed and may not be used yet: a grant older than the generation may still name them.
type held struct {
	generation uint64
	lun, n     uint32
}

// catalogue is everything that a record says.
type catalogue struct {
	uuid       UUID
	generation uint64
	nextInode  uint64
	nextGrant  uint64
	inodes     []*inode // by number, ascending
	held       []held
	grants     []Grant
}

// encodedSize of an inode in a record.
func (n *inode) encodedSize() int64 {
	size := int64(inodeHeader)
	if !n.isDir {
		return size + runSize*int64(len(n.runs))
	}
	for name := range n.entries {
		size += entryHeader + int64(len(name))
	}
	return size
}

// encode is the inode's part of a record, which is kept until the inode changes.
func (n *inode) encode() []byte {
	if n.encoded != nil {
		return n.encoded
	}
	p := make([]byte, inodeHeader, n.encodedSize())
	le.PutUint64(p, n.number)
	le.PutUint64(p[8:], uint64(n.size))
	if !n.isDir {
		p[16] = kindFile
		le.PutUint32(p[20:], uint32(len(n.runs)))
		for _, r := range n.runs {
			p = le.AppendUint32(le.AppendUint32(le.AppendUint32(p, r.at), r.lun), r.n)
		}
		n.encoded = p
		return p
	}
	p[16] = kindDir
	le.PutUint32(p[20:], uint32(len(n.entries)))
	names := make([]string, 0, len(n.entries))
	for name := range n.entries {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		p = append(le.AppendUint64(p, n.entries[name]), byte(len(name)))
		p = append(p, name...)
	}
	n.encoded = p
	return p
}

// encode makes the record, filled up with zeros to whole blocks, and tells its length.
func (c *catalogue) encode() (record []byte, length int64) {
	length = recordHeader + heldSize*int64(len(c.held))
	for _, n := range c.inodes {
		length += int64(len(n.encode()))
	}
	for _, g := range c.grants {
		length += grantHeader + int64(len(g.Data))
	}
	full := fsx.AlignedBuffer(int((length + blockSize - 1) / blockSize * blockSize))
	p := full[:recordHeader]
	copy(p, recordMagic[:])
	le.PutUint32(p[8:], formatVersion)
	copy(p[16:], c.uuid[:])
	le.PutUint64(p[32:], c.generation)
	le.PutUint64(p[40:], uint64(length))
	le.PutUint64(p[48:], c.nextInode)
	le.PutUint64(p[56:], c.nextGrant)
	le.PutUint32(p[64:], uint32(len(c.inodes)))
	le.PutUint32(p[68:], uint32(len(c.held)))
	le.PutUint32(p[72:], uint32(len(c.grants)))
	for _, n := range c.inodes {
		p = append(p, n.encode()...)
	}
	for _, h := range c.held {
		p = le.AppendUint32(le.AppendUint32(le.AppendUint64(p, h.generation), h.lun), h.n)
	}
	for _, g := range c.grants {
		p = le.AppendUint32(le.AppendUint64(le.AppendUint64(p, g.ID), g.Generation), uint32(len(g.Data)))
		p = append(p, g.Data...)
	}
	le.PutUint32(full[12:], crc32.Checksum(full[:length], castagnoli))
	return full, length
}

// reader takes a record apart; what it does not have it does not give, and then bad is set.
type reader struct {
	p   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.p) || r.bad {
		r.bad = true
		return make([]byte, min(n, 64))
	}
	out := r.p[:n]
	r.p = r.p[n:]
	return out
}

// fits tells whether count things of at least size bytes can be in what is left: it bounds what is allocated for them.
func (r *reader) fits(count uint32, size int) bool {
	if uint64(count)*uint64(size) > uint64(len(r.p)) {
		r.bad = true
	}
	return !r.bad
}

// decodeRecord reads a record whose place, length and checksum the superblock told. Problems are what contradicts itself;
// a catalogue with problems is for Check only.
func decodeRecord(p []byte, s *super) (*catalogue, []string) {
	if int64(len(p)) < recordHeader || [8]byte(p[:8]) != recordMagic {
		return nil, []string{"the catalogue has another magic number"}
	}
	want := le.Uint32(p[12:])
	clear(p[12:16])
	if sum := crc32.Checksum(p, castagnoli); sum != want || want != s.recordCRC {
		return nil, []string{fmt.Sprintf("the catalogue's checksum is %08x, its content's %08x, the superblock says %08x", want, sum, s.recordCRC)}
	}
	c := &catalogue{uuid: UUID(p[16:32]), generation: le.Uint64(p[32:]), nextInode: le.Uint64(p[48:]), nextGrant: le.Uint64(p[56:])}
	if c.uuid != s.uuid || c.generation != s.generation || int64(le.Uint64(p[40:])) != s.recordLen {
		return nil, []string{fmt.Sprintf("the catalogue is of generation %d of store %s, the superblock of generation %d of %s",
			c.generation, c.uuid, s.generation, s.uuid)}
	}
	inodes, helds, grants := le.Uint32(p[64:]), le.Uint32(p[68:]), le.Uint32(p[72:])
	r := &reader{p: p[recordHeader:]}
	if inodes > maxInodes || grants > maxGrants || !r.fits(inodes, inodeHeader) {
		return nil, []string{fmt.Sprintf("the catalogue claims %d files and %d grants", inodes, grants)}
	}
	c.inodes = make([]*inode, 0, inodes)
	for range inodes {
		n, problem := decodeInode(r)
		if problem != "" {
			return nil, []string{problem}
		}
		c.inodes = append(c.inodes, n)
	}
	if !r.fits(helds, heldSize) {
		return nil, []string{fmt.Sprintf("the catalogue claims %d runs of held extents", helds)}
	}
	for range helds {
		h := r.take(heldSize)
		c.held = append(c.held, held{le.Uint64(h), le.Uint32(h[8:]), le.Uint32(h[12:])})
	}
	for range grants {
		h := r.take(grantHeader)
		size := le.Uint32(h[16:])
		if size > maxGrantData || r.bad {
			return nil, []string{"the catalogue's list of grants is broken"}
		}
		c.grants = append(c.grants, Grant{ID: le.Uint64(h), Generation: le.Uint64(h[8:]), Data: slices.Clone(r.take(int(size)))})
	}
	if r.bad || len(r.p) > 0 {
		return nil, []string{"the catalogue's length does not fit what it holds"}
	}
	return c, c.validate(&s.layout)
}

func decodeInode(r *reader) (*inode, string) {
	h := r.take(inodeHeader)
	if r.bad {
		return nil, "the catalogue ends inside a file"
	}
	n := &inode{number: le.Uint64(h), size: int64(le.Uint64(h[8:])), stale: true}
	count := le.Uint32(h[20:])
	broken := fmt.Sprintf("file %d claims %d parts, which the catalogue has no room for", n.number, count)
	switch h[16] {
	case kindFile:
		if !r.fits(count, runSize) {
			return nil, broken
		}
		n.runs = make([]run, count)
		for i := range n.runs {
			p := r.take(runSize)
			n.runs[i] = run{le.Uint32(p), le.Uint32(p[4:]), le.Uint32(p[8:])}
		}
	case kindDir:
		if !r.fits(count, entryHeader+1) {
			return nil, broken
		}
		n.isDir, n.entries = true, make(map[string]uint64, count)
		for range count {
			p := r.take(entryHeader)
			name := string(r.take(int(p[8])))
			if _, twice := n.entries[name]; twice || r.bad {
				return nil, fmt.Sprintf("directory %d has the name %.40q twice, or ends in it", n.number, name)
			}
			n.entries[name] = le.Uint64(p)
		}
	default:
		return nil, fmt.Sprintf("file %d is of kind %d", n.number, h[16])
	}
	return n, ""
}

// maxProblems is how many are told of one catalogue.
const maxProblems = 50

// validate checks everything that must hold between the parts, and counts the links.
func (c *catalogue) validate(l *layout) []string {
	var problems []string
	say := func(format string, args ...any) {
		if len(problems) < maxProblems {
			problems = append(problems, fmt.Sprintf(format, args...))
		}
	}
	used := newBitmap(l.extents)
	take := func(what string, r run) {
		if r.n == 0 || int64(r.lun)+int64(r.n) > l.extents {
			say("%s has extents %d to %d, the LUN has %d", what, r.lun, int64(r.lun)+int64(r.n), l.extents)
			return
		}
		if !used.setAll(r.lun, r.n) {
			say("%s has an extent of [%d, +%d) that something else has as well", what, r.lun, r.n)
		}
	}
	byNumber := c.checkFiles(l, say, take)
	c.checkTree(byNumber, say)
	for _, h := range c.held {
		take("the list of held extents", run{lun: h.lun, n: h.n})
	}
	seen := uint64(0)
	for _, g := range c.grants {
		if g.ID <= seen || g.ID >= c.nextGrant || g.Generation > c.generation {
			say("grant %d of generation %d follows grant %d, the next number is %d", g.ID, g.Generation, seen, c.nextGrant)
		}
		seen = g.ID
	}
	return problems
}

// checkFiles checks each file by itself; take is called with all their extents.
func (c *catalogue) checkFiles(l *layout, say func(string, ...any), take func(string, run)) map[uint64]*inode {
	byNumber := make(map[uint64]*inode, len(c.inodes))
	last := uint64(0)
	for _, n := range c.inodes {
		if n.number <= last || n.number >= c.nextInode {
			say("file %d follows file %d, the next number is %d", n.number, last, c.nextInode)
		}
		last = n.number
		byNumber[n.number] = n
		if n.isDir {
			continue
		}
		what, end := fmt.Sprintf("file %d", n.number), int64(0)
		if n.size < 0 || n.size > l.maxFile() {
			say("%s has a size of %d bytes", what, n.size)
		}
		for _, r := range n.runs {
			if int64(r.at) < end || (int64(r.at)+int64(r.n))*l.extentSize >= n.size+l.extentSize {
				say("%s of %d bytes has extents [%d, +%d) out of order or behind its end", what, n.size, r.at, r.n)
			}
			end = int64(r.at) + int64(r.n)
			take(what, r)
		}
	}
	return byNumber
}

// checkTree walks from the root: every directory has one name, and nothing is without.
func (c *catalogue) checkTree(byNumber map[uint64]*inode, say func(string, ...any)) {
	root := byNumber[rootInode]
	if root == nil || !root.isDir {
		say("the root directory is missing")
		return
	}
	root.links = 1
	queue := []*inode{root}
	for len(queue) > 0 {
		d := queue[0]
		queue = queue[1:]
		for name, number := range d.entries {
			child := byNumber[number]
			if fsx.CheckName(name) != nil || len(name) > maxName {
				say("directory %d has the name %.40q", d.number, name)
			}
			if child == nil {
				say("directory %d names file %d, which is missing", d.number, number)
				continue
			}
			child.links++
			if child.isDir {
				if child.links > 1 {
					say("directory %d has more than one name", number)
					continue
				}
				queue = append(queue, child)
			}
		}
	}
	for _, n := range c.inodes {
		if n.links == 0 {
			say("file %d has no name", n.number)
		}
	}
}
