package sim

import (
	"errors"
	"io"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// maxFileSize is what ext4 with 4 KiB blocks can hold.
const maxFileSize = 16 << 40

type file struct {
	fs       *FS
	inode    *inode
	path     string
	writable bool
	closed   bool
	syncErr  error
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return 0, fsx.Failure("read", f.path, fs.ErrClosed)
	}
	if off < 0 {
		return 0, fault.New(fault.Invalid, "", "read %s: offset %d", f.path, off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	return f.inode.readAt(p, off)
}

// change runs a data operation over [o.off, o.off+o.n).
func (f *file) change(o *Op, do func(n *inode) error) error {
	s := f.fs
	s.mu.Lock()
	defer s.mu.Unlock()
	o.Path, o.inode = f.path, f.inode.number
	if err := f.mayWrite(o); err != nil {
		return err
	}
	fail, late := s.step()
	if fail != nil && !late {
		return fsx.Failure(string(o.Kind), f.path, fail)
	}
	if err := f.perform(o, do); err != nil {
		return err
	}
	return fsx.Failure(string(o.Kind), f.path, fail)
}

func (f *file) mayWrite(o *Op) error {
	switch {
	case f.closed:
		return fsx.Failure(string(o.Kind), f.path, fs.ErrClosed)
	case o.off < 0 || o.n < 0 || o.off+o.n < 0:
		return fault.New(fault.Invalid, "", "%s %s: offset %d, length %d", o.Kind, f.path, o.off, o.n)
	case !f.writable:
		return fault.New(fault.ReadOnly, "", "%s %s: it was opened read-only", o.Kind, f.path)
	case o.off+o.n > maxFileSize:
		return fsx.Failure(string(o.Kind), f.path, unix.EFBIG)
	}
	return nil
}

// perform changes the inode and keeps the count of used pages. Called with mu held.
func (f *file) perform(o *Op, do func(n *inode) error) error {
	before := int64(len(f.inode.pages))
	if err := do(f.inode); err != nil {
		return fsx.Failure(string(o.Kind), f.path, err)
	}
	f.fs.used += int64(len(f.inode.pages)) - before
	f.fs.record(o)
	return nil
}

// room tells whether the pages that the range lacks are free. Called with mu held.
func (f *file) room(n *inode, off, length int64) error {
	pages := n.newPages(off, length)
	if err := f.fs.charge(pages); err != nil {
		return err
	}
	f.fs.used -= pages // perform counts them
	return nil
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	s := f.fs
	s.mu.Lock()
	defer s.mu.Unlock()
	o := &Op{Kind: OpWrite, Path: f.path, inode: f.inode.number, off: off, n: int64(len(p))}
	if err := f.mayWrite(o); err != nil || len(p) == 0 {
		return 0, err
	}
	fail, late := s.step()
	if fail != nil && !late {
		stored := p[:short(fail, len(p), errors.Is(fail, unix.ENOSPC))]
		if err := f.store(o, stored); err != nil {
			return 0, err
		}
		n := 0
		if errors.Is(fail, io.ErrShortWrite) {
			n = len(stored)
		}
		return n, fsx.Failure("write", f.path, fail)
	}
	if err := f.store(o, p); err != nil {
		return 0, err
	}
	if fail != nil {
		return 0, fsx.Failure("write", f.path, fail)
	}
	return len(p), nil
}

func (f *file) store(o *Op, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	o.n = int64(len(p))
	if f.fs.recording {
		o.data = slices.Clone(p)
	}
	return f.perform(o, func(n *inode) error {
		if err := f.room(n, o.off, o.n); err != nil {
			return err
		}
		n.writeAt(p, o.off)
		return nil
	})
}

func (f *file) Datasync() error {
	s := f.fs
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.closed {
		return fsx.Failure("sync", f.path, fs.ErrClosed)
	}
	if f.syncErr != nil {
		return f.syncErr
	}
	f.syncErr = s.sync(&Op{Kind: OpDatasync, Path: f.path, inode: f.inode.number})
	return f.syncErr
}

func (f *file) Truncate(size int64) error {
	return f.change(&Op{Kind: OpTruncate, off: size}, func(n *inode) error { n.truncate(size); return nil })
}

func (f *file) Allocate(off, length int64) error {
	if length == 0 {
		return nil
	}
	return f.change(&Op{Kind: OpAllocate, off: off, n: length}, func(n *inode) error {
		if err := f.room(n, off, length); err != nil {
			return err
		}
		n.allocate(off, length)
		return nil
	})
}

func (f *file) Punch(off, length int64) error {
	return f.change(&Op{Kind: OpPunch, off: off, n: length}, func(n *inode) error {
		n.clearRange(off, length, false)
		return nil
	})
}

func (f *file) Zero(off, length int64) error {
	return f.change(&Op{Kind: OpZero, off: off, n: length}, func(n *inode) error {
		if err := f.room(n, off, max(0, min(length, n.size-off))); err != nil {
			return err
		}
		n.clearRange(off, length, true)
		return nil
	})
}

func (f *file) Clone(src fsx.File, srcOff, dstOff, n int64) error {
	return fsx.CopyRange(f, fsx.UnwrapFile(src), srcOff, dstOff, n)
}

func (f *file) SeekData(off int64) (start, end int64, err error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return 0, 0, fsx.Failure("seek", f.path, fs.ErrClosed)
	}
	if off < 0 {
		return 0, 0, fault.New(fault.Invalid, "", "seek %s: offset %d", f.path, off)
	}
	return f.inode.seekData(off)
}

func (f *file) Lock(l fsx.LockMode) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return fsx.Failure("lock", f.path, fs.ErrClosed)
	}
	held := f.fs.locks[f.inode.number]
	switch l {
	case fsx.Unlock:
		delete(held, f)
		return nil
	case fsx.LockRead, fsx.LockWrite:
	default:
		return fault.New(fault.Invalid, "", "lock %s: %d is not a lock mode", f.path, l)
	}
	if l == fsx.LockWrite && !f.writable {
		return fault.New(fault.Invalid, "", "lock %s for writing: it was opened read-only", f.path)
	}
	for other, mode := range held {
		if other != f && (l == fsx.LockWrite || mode == fsx.LockWrite) {
			return fault.New(fault.InUse, "", "%s is locked", f.path)
		}
	}
	if held == nil {
		held = map[*file]fsx.LockMode{}
		f.fs.locks[f.inode.number] = held
	}
	held[f] = l
	return nil
}

func (f *file) Stat() (fsx.Info, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return fsx.Info{}, fsx.Failure("inspect", f.path, fs.ErrClosed)
	}
	return f.inode.info(), nil
}

func (f *file) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	delete(f.fs.locks[f.inode.number], f)
	f.inode.opens--
	f.fs.release(f.inode)
	return nil
}
