package table

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

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

// Generation is how many workers have begun.
func (t *Table) Generation() uint64 { return word64(t.mem, offGeneration).Load() }

// MarkServed records that a worker has opened the disk, with whatever check that took, and is about to serve it. From
// then on a successor takes over instead of opening afresh.
func (t *Table) MarkServed() { word32(t.mem, offServed).Store(1) }

// Served tells whether a worker before this one served the disk.
func (t *Table) Served() bool { return word32(t.mem, offServed).Load() != 0 }

// Claim makes this process the one that serves the disk of the table in f: it waits until no other process is. The claim
// is a lock of an open file description that only this process has, so the kernel drops it when the last thread of the
// process has left its last system call (exit_files in do_exit): the successor's requests cannot meet one of its
// predecessor's that is still on its way to the medium. The claim ends when the returned file is closed.
func Claim(f *os.File) (*os.File, error) {
	fd, err := sys.Fd(f)
	if err != nil {
		return nil, err
	}
	// A duplicate would share its lock with every holder; opening through /proc makes a description of our own.
	own, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fault.Wrap(os.NewSyscallError("open", err), "claim a pending table")
	}
	for {
		err = unix.FcntlFlock(uintptr(own), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK, Len: 1})
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = unix.Close(own)
		return nil, fault.Wrap(os.NewSyscallError("fcntl F_OFD_SETLKW", err), "claim a pending table")
	}
	return os.NewFile(uintptr(own), "memfd:vmdk-pending"), nil
}
