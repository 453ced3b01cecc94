package table

import "github.com/vmdk-csi/vmdk-csi/pkg/fault"

// SaveState keeps the export session's state, once: a session negotiates once. The same state again is success.
func (t *Table) SaveState(state []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(state) == 0 || len(state) > StateSize {
		return fault.New(fault.OutOfRange, "", "a session state has 1 to %d bytes, not %d", StateSize, len(state))
	}
	n := word32(t.mem, offStateLen)
	if have := n.Load(); have != 0 {
		if string(t.mem[offState:offState+have]) == string(state) {
			return nil
		}
		return fault.New(fault.Precondition, "detach the disk and attach it again", "the session negotiated a second time, "+
			"with another outcome")
	}
	copy(t.mem[offState:], state)
	n.Store(uint32(len(state)))
	return nil
}

// State is what SaveState kept, nil if nothing.
func (t *Table) State() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := word32(t.mem, offStateLen).Load()
	if n == 0 {
		return nil
	}
	return append([]byte(nil), t.mem[offState:offState+n]...)
}

// Poison marks the disk: a sync failed, and no successor may trust what it reads back before the disk was detached and
// checked. It is never unmarked; the next attach makes a new table.
func (t *Table) Poison() { word32(t.mem, offPoisoned).Store(1) }

// Poisoned tells whether Poison was called by any holder.
func (t *Table) Poisoned() bool { return word32(t.mem, offPoisoned).Load() != 0 }

// Begin counts one more worker that serves from this table and returns its number, 1 for the first.
func (t *Table) Begin() uint64 { return word64(t.mem, offGeneration).Add(1) }
