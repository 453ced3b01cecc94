package scsi

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// maxKept is how many bytes of acknowledged writes may wait for a flush before one is made.
const maxKept = 32 << 20

// errReplay sends a request back to where it can wait until what a reset lost is written again.
var errReplay = errors.New("the logical unit was reset")

// kept are the writes that were sent and not flushed since, in order. A unit with a volatile cache that was reset, or whose target was
// started anew, may have lost any of them; then all are written again, before anything else is done. So a reset is a pause.
//
// Every request holds Unit.align for reading while it runs; replay holds it for writing, so that no other request is under way.
type kept struct {
	pending atomic.Bool // a reset was told, and replay has not run
	mu      sync.Mutex
	writes  []*keptWrite
	told    int // resets
	bytes   int64
}

type keptWrite struct {
	of     *kept
	data   []byte // nil: n zeros
	off, n int64
	flags  byte // of WRITE SAME
	acked  bool
}

// keep notes a write before it is sent.
func (u *Unit) keep(p []byte, off, n int64, flags byte) *keptWrite {
	w := &keptWrite{of: &u.kept, data: bytes.Clone(p), off: off, n: n, flags: flags}
	if !u.caches {
		return w
	}
	u.kept.mu.Lock()
	defer u.kept.mu.Unlock()
	u.kept.writes = append(u.kept.writes, w)
	u.kept.bytes += int64(len(p))
	return w
}

// done notes the end of a write. One that failed for good is not written again.
func (w *keptWrite) done(err error) {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	if w.acked = true; err == nil || errors.Is(err, errReplay) {
		return
	}
	w.of.writes = slices.DeleteFunc(w.of.writes, func(x *keptWrite) bool { return x == w })
	w.of.bytes -= int64(len(w.data))
}

// reset holds everybody up until what is kept is written again.
func (k *kept) reset() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.writes) > 0 {
		k.pending.Store(true)
		k.told++
	}
}

// mark gives the writes that were acknowledged by now: a flush that begins after makes them durable.
func (k *kept) mark() map[*keptWrite]bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := map[*keptWrite]bool{}
	for _, w := range k.writes {
		if w.acked {
			m[w] = true
		}
	}
	return m
}

func (k *kept) flushed(m map[*keptWrite]bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.writes = slices.DeleteFunc(k.writes, func(w *keptWrite) bool {
		if m[w] {
			k.bytes -= int64(len(w.data))
		}
		return m[w]
	})
}

// makeRoom flushes when too much would be kept.
func (u *Unit) makeRoom(n int64) error {
	u.kept.mu.Lock()
	full := u.kept.bytes > 0 && u.kept.bytes+n > maxKept
	u.kept.mu.Unlock()
	if !full {
		return nil
	}
	return u.Flush()
}

// whole runs a request, and runs it again after what a reset had lost is written again.
func (u *Unit) whole(request func() error) error {
	for range attempts {
		err := request()
		if !errors.Is(err, errReplay) {
			return err
		}
		if err := u.replay(); err != nil {
			return err
		}
	}
	return fault.New(fault.Unavailable, "Look at the target.", "the logical unit is reset again and again")
}

// replay writes what is kept once more. A write that is repeated is kept twice, which does no harm.
func (u *Unit) replay() error {
	u.align.Lock()
	defer u.align.Unlock()
	for range attempts {
		if !u.kept.pending.Load() {
			return nil // somebody else has done it
		}
		u.kept.mu.Lock()
		writes, told := slices.Clone(u.kept.writes), u.kept.told
		u.kept.mu.Unlock()
		err := u.replayAll(writes)
		u.kept.mu.Lock()
		over := err == nil && u.kept.told == told // else there was another reset meanwhile
		if over {
			u.kept.pending.Store(false)
		}
		u.kept.mu.Unlock()
		switch {
		case over:
			return nil
		case err == nil:
		case !errors.Is(err, errReplay):
			return u.poison(fault.Wrap(err, "write again what a reset lost"))
		}
	}
	return fault.New(fault.Unavailable, "Look at the target.", "the logical unit is reset again and again")
}

func (u *Unit) replayAll(writes []*keptWrite) error {
	for _, w := range writes {
		var err error
		if w.data == nil {
			err = u.sendZeros(w.off, w.off+w.n, w.flags, true)
		} else {
			_, err = u.send(w.data, w.off, true)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
