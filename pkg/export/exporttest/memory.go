package exporttest

import (
	"sync"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Memory is a disk in memory whose requests can be made to wait or fail.
type Memory struct {
	// Block, if set, is what reads wait for; Reading, if set, gets a token from every read that begins.
	Block, Reading chan struct{}

	mu      sync.Mutex
	data    []byte
	flushes int
	fail    error
}

var _ block.Device = (*Memory)(nil)

// NewMemory makes a disk of size bytes.
func NewMemory(size int) *Memory { return &Memory{data: make([]byte, size)} }

// Fail makes every request fail with err, or none if it is nil.
func (m *Memory) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// Hold makes every call wait, that of Size included, until release is called.
func (m *Memory) Hold() (release func()) {
	m.mu.Lock()
	return m.mu.Unlock
}

// Resize makes it another disk of size bytes, all zeros.
func (m *Memory) Resize(size int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data = make([]byte, size)
}

// Content is a copy of n bytes at off.
func (m *Memory) Content(off, n int) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]byte(nil), m.data[off:off+n]...)
}

// Flushes is how often Flush was called.
func (m *Memory) Flushes() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.flushes
}

func (m *Memory) do(off, n int64, f func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	if off < 0 || n < 0 || off > int64(len(m.data))-n {
		return fault.New(fault.OutOfRange, "", "%d bytes at %d", n, off)
	}
	f()
	return nil
}

// ReadAt implements block.Device.
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	if m.Reading != nil {
		m.Reading <- struct{}{}
	}
	if m.Block != nil {
		<-m.Block
	}
	return len(p), m.do(off, int64(len(p)), func() { copy(p, m.data[off:]) })
}

// WriteAt implements block.Device.
func (m *Memory) WriteAt(p []byte, off int64) (int, error) {
	return len(p), m.do(off, int64(len(p)), func() { copy(m.data[off:], p) })
}

// Flush implements block.Device.
func (m *Memory) Flush() error { return m.do(0, 0, func() { m.flushes++ }) }

// Discard implements block.Device.
func (m *Memory) Discard(off, n int64) error {
	return m.do(off, n, func() { clear(m.data[off : off+n]) })
}

// WriteZeroes implements block.Device.
func (m *Memory) WriteZeroes(off, n int64) error { return m.Discard(off, n) }

// Size implements block.Device.
func (m *Memory) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(len(m.data))
}
