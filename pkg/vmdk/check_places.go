package vmdk

import (
	"iter"
	"maps"
	"math/bits"
)

// placeSet remembers which sectors of a file are taken. Its memory follows what is used and how scattered it is: a page of
// 65,536 sectors that is wholly taken costs nothing.
type placeSet struct {
	pages map[int64]*[placeWords]uint64 // nil: all of it
	left  map[int64]int                 // sectors of a page that are free
	top   int64                         // first sector behind the last one taken
	count int64
}

const (
	placeWords = 1024
	placePage  = placeWords * 64
)

func newPlaceSet() *placeSet {
	return &placeSet{pages: map[int64]*[placeWords]uint64{}, left: map[int64]int{}}
}

// add takes n sectors; false if some of them are taken.
func (p *placeSet) add(at, n int64) bool {
	ok := true
	p.top = max(p.top, at+n)
	for end := at + n; at < end; {
		k, w := at/placePage, at%placePage/64
		m := min(end, (at/64+1)*64) - at // sectors of this word
		mask := (^uint64(0) >> (64 - m)) << (at % 64)
		page, there := p.pages[k]
		if !there {
			page = new([placeWords]uint64)
			p.pages[k], p.left[k] = page, placePage
		}
		if page == nil || page[w]&mask != 0 {
			ok = false
		}
		if page != nil {
			fresh := bits.OnesCount64(mask &^ page[w])
			page[w] |= mask
			p.count += int64(fresh)
			if p.left[k] -= fresh; p.left[k] == 0 {
				p.pages[k] = nil
			}
		}
		at += m
	}
	return ok
}

// has tells that some of n sectors are taken.
func (p *placeSet) has(at, n int64) bool {
	for end := at + n; at < end; {
		m := min(end, (at/64+1)*64) - at
		mask := (^uint64(0) >> (64 - m)) << (at % 64)
		if page, there := p.pages[at/placePage]; there && (page == nil || page[at%placePage/64]&mask != 0) {
			return true
		}
		at += m
	}
	return false
}

// word is 64 sectors of a page.
func (p *placeSet) word(k, w int64) uint64 {
	page, there := p.pages[k]
	switch {
	case !there:
		return 0
	case page == nil:
		return ^uint64(0)
	}
	return page[w]
}

// mapKeys are the pages of a set.
func mapKeys(p *placeSet) iter.Seq[int64] { return maps.Keys(p.pages) }
