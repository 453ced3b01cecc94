package nbd

import "sync"

// Ranges keeps overlapping changes apart.
type ranges struct {
	mu    sync.Mutex
	free  *sync.Cond
	spans []span
	waits int
}

type span struct{ from, to int64 }

// Enter waits until no change of the range is under way.
func (r *ranges) enter(off, n int64) (leave func()) {
	mine := span{off, off + n}
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.taken(mine) {
		r.waits++
		r.free.Wait()
		r.waits--
	}
	r.spans = append(r.spans, mine)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for i, x := range r.spans {
			if x == mine {
				last := len(r.spans) - 1
				r.spans[i] = r.spans[last]
				r.spans = r.spans[:last]
				break
			}
		}
		if r.waits > 0 {
			r.free.Broadcast()
		}
	}
}

func (r *ranges) taken(s span) bool {
	for _, x := range r.spans {
		if x.from < s.to && s.from < x.to {
			return true
		}
	}
	return false
}
