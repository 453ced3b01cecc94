package lunlease

import (
	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
)

// A request is split so that MaxIO is about pieces of this size, in bytes.
const (
	maxTransfer = 1 << 20
	maxZero     = 16 << 20
)

// file is the LUN under its lease.
type file struct{ l *Lease }

// begin lets a request through while there is enough left of the lease.
func (l *Lease) begin() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if err := l.check(); err != nil {
			return err
		}
		left := l.until - l.Clock.Now()
		if left >= l.MaxIO {
			l.active++
			return nil
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-l.Clock.After(left):
		}
		l.mu.Lock()
	}
}

func (l *Lease) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.active--; l.active == 0 {
		l.tell()
	}
}

// do runs one request.
func (f *file) do(request func() error) error {
	if err := f.l.begin(); err != nil {
		return err
	}
	defer f.l.end()
	return request()
}

// each runs a request in pieces.
func (f *file) each(off, n, most int64, request func(off, n int64) error) error {
	for n > 0 {
		part := min(n, most)
		if err := f.do(func() error { return request(off, part) }); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

func (f *file) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.do(func() error {
		n, err = f.l.lun.ReadAt(p, off)
		return err
	})
	if gone := f.l.Check(); gone != nil { // it may be what the next owner wrote
		return 0, gone
	}
	return n, err
}

func (f *file) WriteAt(p []byte, off int64) (done int, err error) {
	err = f.each(off, int64(len(p)), maxTransfer, func(off, n int64) error {
		wrote, err := f.l.lun.WriteAt(p[done:][:n], off)
		done += wrote
		return err
	})
	return done, err
}

// Datasync after the lease proves nothing: others write what it would make durable.
func (f *file) Datasync() error { return f.do(f.l.lun.Datasync) }

func (f *file) Truncate(size int64) error {
	return f.do(func() error { return f.l.lun.Truncate(size) })
}

func (f *file) Allocate(off, n int64) error {
	return f.do(func() error { return f.l.lun.Allocate(off, n) })
}

func (f *file) Punch(off, n int64) error { return f.each(off, n, maxZero, f.l.lun.Punch) }

func (f *file) Zero(off, n int64) error { return f.each(off, n, maxZero, f.l.lun.Zero) }

func (f *file) Clone(src fsx.File, srcOff, dstOff, n int64) error {
	return fsx.CopyRange(f, src, srcOff, dstOff, n)
}

func (f *file) SeekData(off int64) (start, end int64, err error) { return f.l.lun.SeekData(off) }

// Lock is the LUN's: it keeps others on this machine away.
func (f *file) Lock(m fsx.LockMode) error { return f.l.lun.Lock(m) }

func (f *file) Stat() (fsx.Info, error) { return f.l.lun.Stat() }

func (f *file) Close() error { return nil }
