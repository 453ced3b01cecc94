package kmutex

import (
	"sync"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Set is a set of keyed locks; the zero value is ready.
type Set struct {
	mu   sync.Mutex
	busy map[string]string // key -> the operation that holds it
}

// TryLock takes key for the operation op. A busy key is fault.InProgress, which names the operation that holds it.
func (s *Set) TryLock(key, op string) (unlock func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if held, ok := s.busy[key]; ok {
		return nil, fault.New(fault.InProgress, "Try again when it has finished.", "%s %s: %s of it is under way", op, key, held)
	}
	if s.busy == nil {
		s.busy = map[string]string{}
	}
	s.busy[key] = op
	var once sync.Once
	return func() {
		once.Do(func() {
			s.mu.Lock()
			delete(s.busy, key)
			s.mu.Unlock()
		})
	}, nil
}

// Idle says whether no key is held.
func (s *Set) Idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.busy) == 0
}
