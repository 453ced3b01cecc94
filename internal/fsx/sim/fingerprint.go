package sim

import (
	"encoding/binary"
	"hash/maphash"
)

// printer makes fingerprints of trees that share pages. What it says is the same for the same content within one process.
type printer struct {
	seed  maphash.Seed
	pages map[*page]uint64
}

func newPrinter() *printer { return &printer{maphash.MakeSeed(), map[*page]uint64{}} }

// print is a number that two trees share if they have the same names, inodes and content; others have different ones, but
// for a chance in 2^64.
func (p *printer) print(t *tree) uint64 {
	sum := uint64(0)
	for _, n := range t.inodes {
		sum += p.inode(n) // in any order
	}
	return sum
}

func (p *printer) inode(n *inode) uint64 {
	sum := uint64(0)
	for name, i := range n.entries {
		sum += p.mix(maphash.String(p.seed, name), i)
	}
	for i, pg := range n.pages {
		sum += p.mix(p.page(pg), uint64(i))
	}
	return p.mix(n.number, uint64(n.size), n.links, sum)
}

func (p *printer) page(pg *page) uint64 {
	if pg == unwritten {
		return 1 // not what a page of zeros has: it is no data (SeekData)
	}
	sum, ok := p.pages[pg]
	if !ok {
		sum = maphash.Bytes(p.seed, pg[:])
		p.pages[pg] = sum
	}
	return sum
}

func (p *printer) mix(words ...uint64) uint64 {
	var b [32]byte
	for i, w := range words {
		binary.LittleEndian.PutUint64(b[8*i:], w)
	}
	return maphash.Bytes(p.seed, b[:8*len(words)])
}
