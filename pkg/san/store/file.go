package store

import (
	"io"
	"io/fs"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// file is an open file.
type file struct {
	s        *Store
	n        *inode
	path     string
	writable bool
	closed   atomic.Bool
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if f.closed.Load() {
		return 0, fsx.Failure("read", f.path, fs.ErrClosed)
	}
	if off < 0 {
		return 0, fault.New(fault.Invalid, "", "read %s: offset %d", f.path, off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	f.n.mu.RLock()
	defer f.n.mu.RUnlock()
	if off >= f.n.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > f.n.size-off {
		p, eof = p[:f.n.size-off], io.EOF
	}
	err := f.s.pieces(f.n, off, int64(len(p)), func(x piece) error {
		part := p[x.off-off:][:x.n]
		if x.lun < 0 {
			clear(part)
			return nil
		}
		_, err := f.s.lun.ReadAt(part, x.lun)
		return err
	})
	if err != nil {
		return 0, fault.Wrap(err, "read %s", f.path)
	}
	return len(p), eof
}

// mayWrite refuses what cannot be.
func (f *file) mayWrite(op string, off, n int64) error {
	switch {
	case f.closed.Load():
		return fsx.Failure(op, f.path, fs.ErrClosed)
	case off < 0 || n < 0 || off+n < 0:
		return fault.New(fault.Invalid, "", "%s %s: offset %d, length %d", op, f.path, off, n)
	case !f.writable:
		return fault.New(fault.ReadOnly, "", "%s %s: it was opened read-only", op, f.path)
	case off+n > f.s.layout.maxFile():
		return fsx.Failure(op, f.path, unix.EFBIG)
	case f.s.dead.Load(): // the LUN may be another's
		return f.s.death()
	}
	return nil
}

// Failed is why the store does nothing any more, nil if it works.
func (s *Store) Failed() error { return s.death() }

// death is why nothing is written any more.
func (s *Store) death() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.poisoned
}

// WriteAt writes straight to the LUN where the file has room; else extents are allocated first.
func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if err := f.mayWrite("write", off, int64(len(p))); err != nil || len(p) == 0 {
		return 0, err
	}
	f.n.mu.RLock()
	if off+int64(len(p)) <= f.n.size && f.s.covered(f.n, off, int64(len(p))) {
		err := f.s.store(f.n.runs, p, off)
		f.n.mu.RUnlock()
		return f.wrote(len(p), err)
	}
	f.n.mu.RUnlock()
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	err := f.extend("write", off, int64(len(p)), off+int64(len(p)), func(runs []run) error { return f.s.store(runs, p, off) })
	return f.wrote(len(p), err)
}

func (f *file) wrote(n int, err error) (int, error) {
	if err != nil {
		return 0, fault.Wrap(err, "write %s", f.path)
	}
	return n, nil
}

// store writes into places that the runs have.
func (s *Store) store(runs []run, p []byte, off int64) error {
	view := inode{runs: runs}
	return s.pieces(&view, off, int64(len(p)), func(x piece) error {
		_, err := s.lun.WriteAt(p[x.off-off:][:x.n], x.lun)
		return err
	})
}

// extend gives every part of [off, off+length) a place and the file at least that size:
//
//  1. Extents are taken, and zeroed but for what the write covers.
//  2. The write is made.
//  3. The file has them. Only now a commit can name them, which syncs before it is one.
//
// Crash: they are free. Called with the inode's mu held.
func (f *file) extend(op string, off, length, size int64, write func(runs []run) error) error {
	s, n := f.s, f.n
	if err := s.growable(n, size); err != nil {
		return fault.Wrap(err, "%s %s", op, f.path)
	}
	fresh, err := s.fill(f.path, n, off, length)
	if err != nil {
		return fault.Wrap(err, "%s %s", op, f.path)
	}
	runs := n.runs
	if len(fresh) > 0 {
		runs = merged(n.runs, fresh)
	}
	covered := int64(0)
	if write != nil {
		covered = length
	}
	for _, r := range fresh {
		if err == nil {
			err = s.zeroAround(r, off, covered)
		}
	}
	if err == nil && write != nil {
		err = write(runs)
	}
	if err == nil {
		err = s.change(int64(len(runs)-len(n.runs))*runSize, func() error {
			grows := int64(len(runs)-len(n.runs)) * runSize
			n.runs, n.size = runs, max(n.size, size)
			s.touch(n, grows)
			return nil
		})
	}
	if err != nil {
		s.giveUp(fresh)
		n.stale = true // a part of the write may be there
	}
	return err
}

// growable makes the bytes behind the end of the file zeros, before the file reaches further. What was cut off must not
// come back; but until the cut is durable the bytes belong to the file that a crash brings back, so it is made so first.
// Called with the inode's mu held.
func (s *Store) growable(n *inode, size int64) error {
	if size <= n.size || !n.stale {
		return nil
	}
	rest := n.size % s.layout.extentSize
	if rest == 0 {
		n.stale = false
		return nil
	}
	err := s.pieces(n, n.size, s.layout.extentSize-rest, func(x piece) error {
		if x.lun < 0 {
			return nil
		}
		s.mu.Lock()
		uncertain := n.cut > s.super.generation
		s.mu.Unlock()
		if uncertain {
			if err := s.commit(); err != nil {
				return err
			}
		}
		return s.zero(x.lun, x.n)
	})
	n.stale = err != nil
	return err
}

// fill takes extents for the holes of the range; nobody names them yet. Called with the inode's mu held.
func (s *Store) fill(what string, n *inode, off, length int64) (fresh []run, err error) {
	if length == 0 {
		return nil, nil
	}
	size := s.layout.extentSize
	from, to := off/size, (off+length+size-1)/size
	want := int64(-1)
	if i := n.find(uint32(from)); i > 0 {
		want = int64(n.runs[i-1].lun) + int64(n.runs[i-1].n)
	}
	err = s.pieces(n, from*size, (to-from)*size, func(x piece) error {
		if x.lun >= 0 {
			want = (x.lun - s.layout.dataStart + x.n) / size
			return nil
		}
		got, err := s.take(what, x.n/size, want)
		at := uint32(x.off / size)
		for _, r := range got {
			fresh = append(fresh, run{at, r.lun, r.n})
			at += r.n
			want = int64(r.lun) + int64(r.n)
		}
		return err
	})
	if err != nil {
		s.giveUp(fresh)
		return nil, err
	}
	return fresh, nil
}

// zeroAround zeroes what of a fresh run lies outside [off, off+n).
func (s *Store) zeroAround(r run, off, n int64) error {
	start := int64(r.at) * s.layout.extentSize
	end, at := start+int64(r.n)*s.layout.extentSize, s.layout.place(r.lun)
	if n == 0 || off >= end || off+n <= start {
		return s.zero(at, end-start)
	}
	if off > start {
		if err := s.zero(at, off-start); err != nil {
			return err
		}
	}
	if off+n < end {
		return s.zero(at+off+n-start, end-off-n)
	}
	return nil
}

// zeroStep bounds one request to the LUN.
const zeroStep = 1 << 30

func (s *Store) zero(at, n int64) error {
	for n > 0 {
		step := min(n, zeroStep)
		if err := s.lun.Zero(at, step); err != nil {
			return err
		}
		at, n = at+step, n-step
	}
	return nil
}

func (f *file) Truncate(size int64) error {
	if err := f.mayWrite("resize", size, 0); err != nil {
		return err
	}
	s, n := f.s, f.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := s.growable(n, size); err != nil {
		return fault.Wrap(err, "resize %s", f.path)
	}
	ext := s.layout.extentSize
	kept, cut := without(n.runs, (size+ext-1)/ext, 1<<32)
	return fsx.Failure("resize", f.path, s.change(0, func() error {
		if size < n.size {
			n.stale, n.cut = true, s.next
		}
		s.touch(n, int64(len(kept)-len(n.runs))*runSize)
		n.size, n.runs = size, kept
		s.free(s.next, cut)
		return nil
	}))
}

func (f *file) Allocate(off, n int64) error {
	if err := f.mayWrite("allocate", off, n); err != nil || n == 0 {
		return err
	}
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	if off+n <= f.n.size && f.s.covered(f.n, off, n) {
		return nil
	}
	return f.extend("allocate", off, n, off+n, nil)
}

// Punch gives back the whole extents of the range and zeroes the rest of it.
func (f *file) Punch(off, n int64) error {
	if err := f.mayWrite("punch", off, n); err != nil {
		return err
	}
	s := f.s
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	if n = min(n, f.n.size-off); n <= 0 {
		return nil
	}
	ext, end := s.layout.extentSize, off+n
	from, to := (off+ext-1)/ext, end/ext
	if end == f.n.size {
		to = (end + ext - 1) / ext
	}
	if from >= to {
		return fault.Wrap(s.zeroRange(f.n, off, n), "punch %s", f.path)
	}
	if err := s.zeroRange(f.n, off, from*ext-off); err != nil {
		return fault.Wrap(err, "punch %s", f.path)
	}
	if err := s.zeroRange(f.n, to*ext, end-to*ext); err != nil {
		return fault.Wrap(err, "punch %s", f.path)
	}
	kept, cut := without(f.n.runs, from, to)
	if len(cut) == 0 {
		return nil
	}
	grows := int64(len(kept)-len(f.n.runs)) * runSize
	return fsx.Failure("punch", f.path, s.change(grows, func() error {
		s.touch(f.n, grows)
		f.n.runs = kept
		s.free(s.next, cut)
		return nil
	}))
}

// zeroRange zeroes what of the range has a place. Called with the inode's mu held.
func (s *Store) zeroRange(n *inode, off, length int64) error {
	if length <= 0 {
		return nil
	}
	return s.pieces(n, off, length, func(x piece) error {
		if x.lun < 0 {
			return nil
		}
		return s.zero(x.lun, x.n)
	})
}

// Zero zeroes in place, and gives holes a place.
func (f *file) Zero(off, n int64) error {
	if err := f.mayWrite("zero", off, n); err != nil {
		return err
	}
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	if n = min(n, f.n.size-off); n <= 0 {
		return nil
	}
	if err := f.s.zeroRange(f.n, off, n); err != nil {
		return fault.Wrap(err, "zero %s", f.path)
	}
	if f.s.covered(f.n, off, n) {
		return nil
	}
	return f.extend("zero", off, n, f.n.size, nil)
}

// Clone copies: extents of a store have one owner. Files share all of theirs by hard links.
func (f *file) Clone(src fsx.File, srcOff, dstOff, n int64) error {
	if err := f.mayWrite("clone into", dstOff, n); err != nil || n == 0 {
		return err
	}
	return fsx.CopyRange(f, fsx.UnwrapFile(src), srcOff, dstOff, n)
}

func (f *file) SeekData(off int64) (start, end int64, err error) {
	if f.closed.Load() {
		return 0, 0, fsx.Failure("seek", f.path, fs.ErrClosed)
	}
	if off < 0 {
		return 0, 0, fault.New(fault.Invalid, "", "seek %s: offset %d", f.path, off)
	}
	n, ext := f.n, f.s.layout.extentSize
	n.mu.RLock()
	defer n.mu.RUnlock()
	if off >= n.size {
		return 0, 0, io.EOF
	}
	i := n.find(uint32(off / ext))
	if i == len(n.runs) {
		return 0, 0, io.EOF
	}
	start = max(off, int64(n.runs[i].at)*ext)
	end = (int64(n.runs[i].at) + int64(n.runs[i].n)) * ext
	for i++; i < len(n.runs) && int64(n.runs[i].at)*ext == end; i++ {
		end = (int64(n.runs[i].at) + int64(n.runs[i].n)) * ext
	}
	return start, min(end, n.size), nil
}

func (f *file) Stat() (fsx.Info, error) {
	if f.closed.Load() {
		return fsx.Info{}, fsx.Failure("inspect", f.path, fs.ErrClosed)
	}
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	return f.s.info(f.n), nil
}

func (f *file) Datasync() error {
	if f.closed.Load() {
		return fsx.Failure("sync", f.path, fs.ErrClosed)
	}
	return fsx.Failure("sync", f.path, f.s.sync(f.n))
}

// Lock excludes other openers in this process: it is the only one that has the store.
func (f *file) Lock(l fsx.LockMode) error {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	switch {
	case f.closed.Load():
		return fsx.Failure("lock", f.path, fs.ErrClosed)
	case l != fsx.Unlock && l != fsx.LockRead && l != fsx.LockWrite:
		return fault.New(fault.Invalid, "", "lock %s: %d is not a lock mode", f.path, l)
	case l == fsx.LockWrite && !f.writable:
		return fault.New(fault.Invalid, "", "lock %s for writing: it was opened read-only", f.path)
	case l == fsx.Unlock:
		delete(f.n.locks, f)
		return nil
	}
	for other, mode := range f.n.locks {
		if other != f && (l == fsx.LockWrite || mode == fsx.LockWrite) {
			return fault.New(fault.InUse, "Detach the disk, or return its block map.", "%s is in use by somebody who locked it", f.path)
		}
	}
	if f.n.locks == nil {
		f.n.locks = map[*file]fsx.LockMode{}
	}
	f.n.locks[f] = l
	return nil
}

func (f *file) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	delete(f.n.locks, f)
	f.n.opens--
	f.s.release(f.n)
	return nil
}
