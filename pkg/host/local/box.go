package local

import (
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// patience is how long a datastore may take to say whether it is there.
const patience = 5 * time.Second

// box keeps a file system that does not answer (hard NFS, its server away) from keeping its callers. The zero value is
// ready to use.
type box struct {
	patience time.Duration // 0: the constant

	mu    sync.Mutex
	hung  int // calls that were given up and have not ended
	since time.Time
}

// hangs says whether a call is still out there.
func (b *box) hangs() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.hung > 0
}

// within calls do and waits for it with patience. Who gave up leaves a goroutine behind that ends when the kernel lets it
// go; as long as one is there nobody else tries. Kinds: Unavailable, and those of do.
func within[T any](b *box, name string, do func() (T, error)) (T, error) {
	var none T
	b.mu.Lock()
	wait, hung, since := b.patience, b.hung > 0, b.since
	b.mu.Unlock()
	if wait == 0 {
		wait = patience
	}
	silent := func(since time.Time) error {
		return fault.New(fault.Unavailable, "Look at the file system and its server; the datastore is used again when it answers.",
			"datastore %s has not answered since %s", name, since.UTC().Format(time.RFC3339))
	}
	if hung {
		return none, silent(since)
	}
	type result struct {
		v   T
		err error
	}
	start, done := time.Now(), make(chan result, 1)
	var ended, counted bool // guarded by b.mu
	go func() {
		v, err := do()
		b.mu.Lock()
		defer b.mu.Unlock()
		done <- result{v, err}
		if ended = true; counted {
			b.hung--
		}
	}()
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case r := <-done:
		return r.v, r.err
	case <-t.C:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if ended {
		r := <-done
		return r.v, r.err
	}
	if counted = true; b.hung == 0 {
		b.since = start
	}
	b.hung++
	return none, silent(b.since)
}
