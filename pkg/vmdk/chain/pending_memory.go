package chain

import "sync"

// MemoryPending is a Pending in this process's memory, for tests and for tools that emulate a take-over. The zero
// value is unbounded.
type MemoryPending struct {
	// Max is the most entries it holds; 0: no bound.
	Max int

	mu      sync.Mutex
	first   uint64 // number of entries retired
	entries []PendingEntry
}

var _ Pending = (*MemoryPending)(nil)

// Append implements Pending.
func (m *MemoryPending) Append(entries ...PendingEntry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Max > 0 && len(m.entries)+len(entries) > m.Max {
		return ErrPendingFull
	}
	m.entries = append(m.entries, entries...)
	return nil
}

// Mark implements Pending.
func (m *MemoryPending) Mark() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.first + uint64(len(m.entries))
}

// Retire implements Pending.
func (m *MemoryPending) Retire(mark uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if mark <= m.first {
		return
	}
	n := min(mark-m.first, uint64(len(m.entries)))
	m.entries = append([]PendingEntry(nil), m.entries[n:]...)
	m.first += n
}

// Load implements Pending.
func (m *MemoryPending) Load() []PendingEntry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]PendingEntry(nil), m.entries...)
}
