package vmdk

import "testing"

// TestPlaceSet compares with a plain array, across words and pages.
func TestPlaceSet(t *testing.T) {
	rnd := rounds(t)
	const size = 3*placePage + 100
	plain := make([]bool, size)
	p := newPlaceSet()
	p.add(placePage, placePage-1) // a page that becomes full
	for i := placePage; i < 2*placePage-1; i++ {
		plain[i] = true
	}
	for range 20000 {
		at, n := rnd.Int64N(size-300), 1+rnd.Int64N(1+rnd.Int64N(200))
		free := true
		for i := at; i < at+n; i++ {
			free = free && !plain[i]
		}
		if p.has(at, n) == free {
			t.Fatalf("has %d, %d", at, n)
		}
		if rnd.IntN(3) > 0 {
			continue
		}
		if p.add(at, n) != free {
			t.Fatalf("add %d, %d", at, n)
		}
		for i := at; i < at+n; i++ {
			plain[i] = true
		}
	}
	if p.add(2*placePage-1, 1) == plain[2*placePage-1] {
		t.Error("the last of the page")
	}
	plain[2*placePage-1] = true
	count := int64(0)
	for _, b := range plain {
		if b {
			count++
		}
	}
	if p.count != count || p.pages[1] != nil {
		t.Errorf("count %d, want %d", p.count, count)
	}
}
