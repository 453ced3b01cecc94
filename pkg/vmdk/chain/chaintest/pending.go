package chaintest

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// RunPending is the conformance suite of chain.Pending. open makes an empty table with room for at least 64 and, if
// bounded, at most 1<<20 entries; reopen gives what a successor of the process that used the table gets, or is nil if the
// implementation cannot emulate that.
func RunPending(t *testing.T, open func(t *testing.T) chain.Pending, reopen func(t *testing.T, p chain.Pending) chain.Pending) {
	entry := func(i int) chain.PendingEntry {
		return chain.PendingEntry{Extent: uint16(i % 3), Link: uint16(i % 5), Sector: uint32(i) * 128, Grain: uint64(i) << 3}
	}
	expect := func(t *testing.T, p chain.Pending, from, to int) {
		t.Helper()
		var want []chain.PendingEntry
		for i := from; i < to; i++ {
			want = append(want, entry(i))
		}
		if got := p.Load(); !slices.Equal(got, want) {
			t.Fatalf("Load gives %d entries %v, want %d: %v", len(got), head(got), len(want), head(want))
		}
	}
	fill := func(t *testing.T, p chain.Pending, from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			if err := p.Append(entry(i)); err != nil {
				t.Fatalf("Append %d: %v", i, err)
			}
		}
	}
	t.Run("empty", func(t *testing.T) {
		p := open(t)
		expect(t, p, 0, 0)
		p.Retire(p.Mark())
		if err := p.Append(); err != nil {
			t.Fatal(err)
		}
		expect(t, p, 0, 0)
	})
	t.Run("order", func(t *testing.T) {
		p := open(t)
		fill(t, p, 0, 10)
		if err := p.Append(entry(10), entry(11), entry(12)); err != nil {
			t.Fatal(err)
		}
		expect(t, p, 0, 13)
	})
	t.Run("retire keeps what came after the mark", func(t *testing.T) {
		p := open(t)
		fill(t, p, 0, 8)
		mark := p.Mark()
		fill(t, p, 8, 20)
		expect(t, p, 0, 20)
		p.Retire(mark)
		expect(t, p, 8, 20)
		p.Retire(mark) // again: nothing
		expect(t, p, 8, 20)
		p.Retire(p.Mark())
		expect(t, p, 0, 0)
		fill(t, p, 20, 22)
		expect(t, p, 20, 22)
	})
	t.Run("full", func(t *testing.T) {
		p := open(t)
		n := 0
		for ; n < 1<<20; n++ {
			if err := p.Append(entry(n)); err != nil {
				if !errors.Is(err, chain.ErrPendingFull) {
					t.Fatalf("a full table says %v, want ErrPendingFull", err)
				}
				break
			}
		}
		if n < 64 {
			t.Fatalf("room for %d entries only", n)
		}
		if n == 1<<20 {
			t.Log("unbounded")
			return
		}
		if err := p.Append(entry(n), entry(n+1)); !errors.Is(err, chain.ErrPendingFull) {
			t.Fatalf("Append of two to a full table: %v", err)
		}
		expect(t, p, 0, n)
		p.Retire(p.Mark())
		fill(t, p, n, n+n/2) // the whole room is there again, wrapping around if it is a ring
		mark := p.Mark()
		fill(t, p, n+n/2, n+n)
		p.Retire(mark)
		fill(t, p, n+n, n+n+n/2)
		expect(t, p, n+n/2, n+n+n/2)
		big := make([]chain.PendingEntry, n-n/2-n/2+n)
		if err := p.Append(big...); !errors.Is(err, chain.ErrPendingFull) {
			t.Fatalf("Append beyond the room: %v", err)
		}
		expect(t, p, n+n/2, n+n+n/2) // all or none
	})
	t.Run("successor", func(t *testing.T) {
		if reopen == nil {
			t.Skip("this implementation lives in one process")
		}
		p := open(t)
		fill(t, p, 0, 30)
		mark := p.Mark()
		fill(t, p, 30, 33)
		p.Retire(mark)
		q := reopen(t, p)
		expect(t, q, 30, 33)
		mark = q.Mark()
		fill(t, q, 33, 40)
		q.Retire(mark)
		expect(t, q, 33, 40)
	})
	t.Run("concurrent", func(t *testing.T) { concurrent(t, open(t)) })
}

// concurrent: appenders and a retirer; every entry is either retired under a mark taken after it, or still there.
func concurrent(t *testing.T, p chain.Pending) {
	const writers, each = 4, 300
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				e := chain.PendingEntry{Extent: uint16(w), Grain: uint64(i), Sector: 7}
				for {
					err := p.Append(e)
					if err == nil {
						break
					}
					if !errors.Is(err, chain.ErrPendingFull) {
						t.Errorf("Append: %v", err)
						return
					}
					p.Retire(p.Mark())
				}
			}
		})
	}
	wg.Wait()
	var last [writers]int64
	for i := range last {
		last[i] = -1
	}
	for _, e := range p.Load() {
		if int(e.Extent) >= writers || e.Sector != 7 || int64(e.Grain) <= last[e.Extent] {
			t.Fatalf("Load gives %+v out of order or torn", e)
		}
		last[e.Extent] = int64(e.Grain)
	}
	p.Retire(p.Mark())
	if n := len(p.Load()); n != 0 {
		t.Fatalf("%d entries after retiring all", n)
	}
}

func head(e []chain.PendingEntry) []chain.PendingEntry { return e[:min(len(e), 4)] }
