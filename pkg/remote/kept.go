package remote

import (
	"slices"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
)

// keepBytes bounds what is kept of changes that no flush has covered: at so much a writer flushes first.
const keepBytes = 64 << 20

// change is one that the LUN has acknowledged.
type change struct {
	seq    uint64
	off, n int64
	data   []byte // nil: zeros
}

// kept is a disk on a LUN that keeps the changes that the LUN has acknowledged and no flush has covered. When a flush fails, nothing is known
// of them: the cache that had them may have lost them, and a flush through another path, which succeeds, would not tell. So they are
// made again through the server before a flush succeeds there.
//
//  1. A change is kept after the LUN has acknowledged it, before the user hears of it.
//  2. A flush notes the last change that is kept, and is done; when it succeeds, what is kept up to there is forgotten. What is acknowledged
//     meanwhile is covered by the next one.
//  3. After a flush that failed nothing is forgotten any more.
//
// Changes that overlap and are made at the same time have no order, here as on every disk.
type kept struct {
	block.Device

	press sync.Mutex // one flush for room at a time

	mu    sync.Mutex
	all   []change
	bytes int64
	last  uint64
	lost  bool // a flush has failed
}

// WriteAt implements block.Device.
func (k *kept) WriteAt(p []byte, off int64) (int, error) {
	if err := k.room(int64(len(p))); err != nil {
		return 0, err
	}
	n, err := k.Device.WriteAt(p, off)
	if err == nil {
		k.add(change{off: off, n: int64(len(p)), data: slices.Clone(p)})
	}
	return n, err
}

// Discard implements block.Device: it reads as zeros afterwards.
func (k *kept) Discard(off, n int64) error {
	err := k.Device.Discard(off, n)
	if err == nil {
		k.add(change{off: off, n: n})
	}
	return err
}

// WriteZeroes implements block.Device.
func (k *kept) WriteZeroes(off, n int64) error {
	err := k.Device.WriteZeroes(off, n)
	if err == nil {
		k.add(change{off: off, n: n})
	}
	return err
}

func (k *kept) add(c change) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.last++
	c.seq = k.last
	k.all = append(k.all, c)
	k.bytes += int64(len(c.data)) + 64 // what it takes besides
}

// room flushes when too much is kept.
func (k *kept) room(n int64) error {
	full := func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.bytes+n > keepBytes && len(k.all) > 0
	}
	if !full() {
		return nil
	}
	k.press.Lock()
	defer k.press.Unlock()
	if !full() {
		return nil
	}
	return k.Flush()
}

// Flush implements block.Device.
func (k *kept) Flush() error {
	k.mu.Lock()
	mark := k.last
	k.mu.Unlock()
	err := k.Device.Flush()
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err != nil:
		k.lost = true
	case !k.lost:
		k.forget(mark)
	}
	return err
}

// forget drops changes up to seq. Called with mu held.
func (k *kept) forget(seq uint64) {
	n := 0
	for n < len(k.all) && k.all[n].seq <= seq {
		k.bytes -= int64(len(k.all[n].data)) + 64
		n++
	}
	k.all = slices.Delete(k.all, 0, n)
}

// flushed says that everything is durable.
func (k *kept) flushed() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forget(k.last)
}

// again makes what is kept again, in the order in which it was acknowledged, and makes it durable. It may be repeated. Nobody uses the LUN.
// nil keeps nothing.
func (k *kept) again(to block.Device) error {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	all := k.all
	k.mu.Unlock()
	if len(all) == 0 {
		return nil
	}
	for _, c := range all {
		var err error
		if c.data != nil {
			_, err = to.WriteAt(c.data, c.off)
		} else {
			err = to.WriteZeroes(c.off, c.n)
		}
		if err != nil {
			return err
		}
	}
	if err := to.Flush(); err != nil {
		return err
	}
	k.flushed()
	return nil
}

// some says whether anything is kept.
func (k *kept) some() bool {
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.all) > 0
}
