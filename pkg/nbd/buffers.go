package nbd

import (
	"math/bits"
	"sync"
)

// Buffers are kept by their size, powers of two from 4 KiB to maxPayload. The allocator aligns such sizes to a page, so that they
// do for direct I/O as they are.
const minBuffer = 4096

var buffers [14]sync.Pool // bits.Len(maxPayload / minBuffer)

// Buffer is memory from the pool.
type buffer struct {
	b     []byte
	class int
}

func getBuffer(n int) *buffer {
	class := bits.Len(uint(max(n, minBuffer)-1) / minBuffer)
	if b, ok := buffers[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{make([]byte, minBuffer<<class), class}
}

func (b *buffer) put() {
	if b != nil {
		buffers[b.class].Put(b)
	}
}

// Budget bounds bytes. Take waits until there is room; who takes more than there ever is gets it when he is alone.
type budget struct {
	mu    sync.Mutex
	room  *sync.Cond
	total int64
	used  int64
}

func newBudget(total int64) *budget {
	b := &budget{total: total}
	b.room = sync.NewCond(&b.mu)
	return b
}

func (b *budget) take(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.used > 0 && b.used+n > b.total {
		b.room.Wait()
	}
	b.used += n
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	b.used -= n
	b.mu.Unlock()
	b.room.Broadcast()
}
