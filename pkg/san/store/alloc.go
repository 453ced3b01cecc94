package store

import "math/bits"

// bitmap says which extents are used; clear bits are free.
type bitmap struct {
	words []uint64
	n     int64
	free  int64
	hint  int64 // where the last search ended
}

func newBitmap(n int64) *bitmap {
	return &bitmap{words: make([]uint64, (n+63)/64), n: n, free: n}
}

func (b *bitmap) used(i int64) bool { return b.words[i/64]>>(i%64)&1 == 1 }

// setAll marks a range and tells whether all of it was free.
func (b *bitmap) setAll(from, n uint32) bool {
	all := true
	for i := int64(from); i < int64(from)+int64(n); i++ {
		if b.used(i) {
			all = false
			continue
		}
		b.words[i/64] |= 1 << (i % 64)
		b.free--
	}
	return all
}

func (b *bitmap) clearAll(from, n uint32) {
	for i := int64(from); i < int64(from)+int64(n); i++ {
		if b.used(i) {
			b.words[i/64] &^= 1 << (i % 64)
			b.free++
		}
	}
}

// next is the first free extent at or after i, n if there is none.
func (b *bitmap) next(i int64) int64 {
	for i < b.n {
		w := ^b.words[i/64] >> (i % 64)
		if w != 0 {
			return min(b.n, i+int64(bits.TrailingZeros64(w)))
		}
		i = (i/64 + 1) * 64
	}
	return b.n
}

// take marks up to n free extents that lie together, at want if it is free, else behind the last that were taken.
func (b *bitmap) take(want int64, n uint32) (from, got uint32) {
	at := want
	if at < 0 || at >= b.n || b.used(at) {
		if at = b.next(b.hint); at == b.n {
			at = b.next(0)
		}
	}
	if at >= b.n {
		return 0, 0
	}
	end := at
	for end < b.n && end-at < int64(n) && !b.used(end) {
		end++
	}
	b.hint = end % b.n
	b.setAll(uint32(at), uint32(end-at))
	return uint32(at), uint32(end - at)
}
