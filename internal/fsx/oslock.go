package fsx

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// qemu's protocol (qemu block/file-posix.c, raw_apply_lock_bytes and raw_check_lock_bytes): an opener holds a *shared*
// OFD lock on byte 100+bit for each permission it uses and on byte 200+bit for each permission it does not share, and
// then tests whether anybody else uses what it does not share or does not share what it uses. Two openers that race can
// both lose, never both win.
const (
	permBase   = 100 // RAW_LOCK_PERM_BASE
	sharedBase = 200 // RAW_LOCK_SHARED_BASE

	permRead   = 1 << 0 // BLK_PERM_CONSISTENT_READ
	permWrite  = 1 << 1 // BLK_PERM_WRITE
	permResize = 1 << 3 // BLK_PERM_RESIZE; bit 2, BLK_PERM_WRITE_UNCHANGED, is shared by everybody
	permBits   = 4

	// ownByte decides between processes of this module, in one step; qemu uses no byte there.
	ownByte = 300
)

type lockState struct {
	own      int16 // F_UNLCK, F_RDLCK or F_WRLCK on ownByte
	perm     int   // bits used
	unshared int   // bits not shared
}

// lockStates: a reader is what qemu calls a user of a backing file, a writer one of an image that a guest runs on.
var lockStates = map[LockMode]lockState{
	Unlock:    {own: unix.F_UNLCK},
	LockRead:  {own: unix.F_RDLCK, perm: permRead, unshared: permWrite | permResize},
	LockWrite: {own: unix.F_WRLCK, perm: permRead | permWrite | permResize, unshared: permWrite | permResize},
}

// Lock changes from the mode held to l. On failure the mode held before still is.
func (f *osFile) Lock(l LockMode) error {
	next, ok := lockStates[l]
	if !ok {
		return fault.New(fault.Invalid, "", "lock %s: %d is not a lock mode", f.path, l)
	}
	if l == LockWrite && !f.writable {
		return fault.New(fault.Invalid, "", "lock %s for writing: it was opened read-only", f.path)
	}
	f.lockMu.Lock()
	defer f.lockMu.Unlock()
	prev := f.locked
	if err := f.setLock(ownByte, next.own); err != nil {
		return f.lockFailed(err)
	}
	// Lock all of the old and the new first, so that no permission held before is ever let go of on the way.
	err := f.applyLocks(prev.perm|next.perm, prev.unshared|next.unshared)
	if err == nil {
		err = f.checkLocks(next)
	}
	keep := next
	if err != nil {
		keep = prev
		_ = f.setLock(ownByte, prev.own) // never stronger than what is held: cannot conflict
	}
	f.releaseLocks(keep)
	f.locked = keep
	return f.lockFailed(err)
}

func (f *osFile) applyLocks(perm, unshared int) error {
	for bit := range permBits {
		for _, b := range []struct {
			want int
			base int64
		}{{perm, permBase}, {unshared, sharedBase}} {
			if b.want&(1<<bit) == 0 {
				continue
			}
			if err := f.setLock(b.base+int64(bit), unix.F_RDLCK); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *osFile) checkLocks(s lockState) error {
	for bit := range permBits {
		if s.unshared&(1<<bit) != 0 {
			if err := f.testLock(permBase + int64(bit)); err != nil {
				return err
			}
		}
		if s.perm&(1<<bit) != 0 {
			if err := f.testLock(sharedBase + int64(bit)); err != nil {
				return err
			}
		}
	}
	return nil
}

// releaseLocks unlocks every byte that s does not need; unlocking cannot conflict.
func (f *osFile) releaseLocks(s lockState) {
	for bit := range permBits {
		if s.perm&(1<<bit) == 0 {
			_ = f.setLock(permBase+int64(bit), unix.F_UNLCK)
		}
		if s.unshared&(1<<bit) == 0 {
			_ = f.setLock(sharedBase+int64(bit), unix.F_UNLCK)
		}
	}
}

func (f *osFile) setLock(at int64, kind int16) error {
	l := unix.Flock_t{Type: kind, Whence: unix.SEEK_SET, Start: at, Len: 1}
	return noEINTR(func() error { return unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_SETLK, &l) })
}

// testLock fails with EAGAIN if another open file holds any lock on the byte.
func (f *osFile) testLock(at int64) error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET, Start: at, Len: 1}
	if err := noEINTR(func() error { return unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_GETLK, &l) }); err != nil {
		return err
	}
	if l.Type != unix.F_UNLCK {
		return unix.EAGAIN
	}
	return nil
}

func (f *osFile) lockFailed(err error) error {
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return fault.New(fault.InUse, "Detach the disk or stop the program that has it open; readers may use `qemu-img info -U`.",
			"%s is open in another process that locked it", f.path)
	}
	return Failure("lock", f.path, err)
}
