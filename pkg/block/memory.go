package block

import "sync"

const memoryPage = 64 << 10

// Mem is a disk in memory that takes room only for what was written.
type Mem struct {
	mu    sync.RWMutex
	size  int64
	pages map[int64]*[memoryPage]byte
	fail  error // of the next Flush
	dead  poison
}

// Memory makes a zeroed disk of size bytes.
func Memory(size int64) *Mem { return &Mem{size: size, pages: map[int64]*[memoryPage]byte{}} }

// FailFlush makes the next Flush fail with err.
func (m *Mem) FailFlush(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// Grow makes the disk larger; the new part reads as zeros. A smaller size is ignored.
func (m *Mem) Grow(size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.size = max(m.size, size)
}

// Clone is a disk with the content that this one has now; neither sees what is written to the other from then on.
func (m *Mem) Clone() *Mem {
	m.mu.RLock()
	defer m.mu.RUnlock()
	c := Memory(m.size)
	for n, page := range m.pages {
		own := *page
		c.pages[n] = &own
	}
	return c
}

// each calls do for every page that [off, off+n) touches: page number, first and last byte in it, and progress.
func each(off, n int64, do func(page, from, to, done int64)) {
	for done := int64(0); done < n; {
		from := (off + done) % memoryPage
		to := min(memoryPage, from+n-done)
		do((off+done)/memoryPage, from, to, done)
		done += to - from
	}
}

// ready checks a request. Called with mu held.
func (m *Mem) ready(off, n int64) error {
	if err := m.dead.check(); err != nil {
		return err
	}
	return CheckRange(m.size, off, n)
}

// ReadAt implements Device.
func (m *Mem) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.ready(off, int64(len(p))); err != nil {
		return 0, err
	}
	each(off, int64(len(p)), func(page, from, to, done int64) {
		part := p[done : done+to-from]
		if b := m.pages[page]; b != nil {
			copy(part, b[from:to])
		} else {
			clear(part)
		}
	})
	return len(p), nil
}

// WriteAt implements Device.
func (m *Mem) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ready(off, int64(len(p))); err != nil {
		return 0, err
	}
	each(off, int64(len(p)), func(page, from, to, done int64) {
		b := m.pages[page]
		if b == nil {
			b = new([memoryPage]byte)
			m.pages[page] = b
		}
		copy(b[from:to], p[done:])
	})
	return len(p), nil
}

// Flush implements Device.
func (m *Mem) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ready(0, 0); err != nil {
		return err
	}
	if m.fail != nil {
		return m.dead.set(m.fail)
	}
	return nil
}

// Discard implements Device.
func (m *Mem) Discard(off, n int64) error { return m.WriteZeroes(off, n) }

// WriteZeroes implements Device.
func (m *Mem) WriteZeroes(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ready(off, n); err != nil {
		return err
	}
	each(off, n, func(page, from, to, _ int64) {
		if to-from == memoryPage {
			delete(m.pages, page)
		} else if b := m.pages[page]; b != nil {
			clear(b[from:to])
		}
	})
	return nil
}

// Size implements Device.
func (m *Mem) Size() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.size
}
