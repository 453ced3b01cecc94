package main

import (
	"errors"
	"sync"
	"testing"
	"time"
)

// Places remembers where it was written.
type places struct {
	mu   sync.Mutex
	seen map[int64]int
	fail error
}

func (p *places) WriteAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[off]++
	return len(b), p.fail
}

func (p *places) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.seen)
}

func TestLoad(t *testing.T) {
	for _, size := range []int64{1 << 30, 1 << 40} {
		p := &places{seen: map[int64]int{}}
		l, err := startLoad(p, size, 1)
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); p.len() < 2000 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		ops, err := l.finish()
		if err != nil || len(ops) < 2000 {
			t.Fatalf("%d operations, %v", len(ops), err)
		}
		for _, o := range ops {
			if o.end < o.start || o.start < 0 {
				t.Fatalf("an operation from %v to %v", o.start, o.end)
			}
		}
		grains := map[int64]bool{}
		far := int64(0)
		for at := range p.seen {
			if at%blockSize != 0 || at+blockSize > size {
				t.Fatalf("a write at %d of %d", at, size)
			}
			grains[at/grain] = true
			far = max(far, at)
		}
		if len(grains) > hotGrains || len(grains) < hotGrains/2 || far < size/2 {
			t.Errorf("size %d: %d grains, the last write at %d", size, len(grains), far)
		}
	}
}

func TestLoadThatFails(t *testing.T) {
	broken := errors.New("broken")
	l, err := startLoad(&places{seen: map[int64]int{}, fail: broken}, 1<<30, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.finish(); !errors.Is(err, broken) {
		t.Errorf("finish = %v", err)
	}
}
