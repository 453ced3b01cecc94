package lunpath

import (
	"errors"
	"io"
	"sync/atomic"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/iscsi"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/scsi"
)

// unitFile is a logical unit as a file.
type unitFile struct {
	where    string
	session  *iscsi.Session
	unit     *scsi.Unit
	writable bool
	guard    atomic.Pointer[func() error]
	// registered: Open registered a key for this session.
	registered bool
}

var _ fsx.File = (*unitFile)(nil)

// Guard sets what is asked before each command that changes the medium.
func (f *unitFile) Guard(check func() error) { f.guard.Store(&check) }

func (f *unitFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.New(fault.Invalid, "", "read %s: offset %d", f.where, off)
	}
	inside := p[:max(0, min(int64(len(p)), f.unit.Size()-off))]
	n, err := f.unit.ReadAt(inside, off)
	if err == nil && len(inside) < len(p) {
		err = io.EOF
	}
	return n, f.failure("read", err)
}

func (f *unitFile) failure(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return fault.Wrap(err, "%s %s", op, f.where)
}

// change is a request that changes the medium; it ends inside.
func (f *unitFile) change(op string, off, n int64, do func() error) error {
	switch {
	case !f.writable:
		return fault.New(fault.ReadOnly, "", "%s %s: it was opened read-only", op, f.where)
	case off < 0 || n < 0:
		return fault.New(fault.Invalid, "", "%s %s: %d bytes at offset %d", op, f.where, n, off)
	case off > f.unit.Size()-n:
		return fault.New(fault.NoSpace, "", "%s %s: a LUN cannot grow", op, f.where)
	}
	return f.failure(op, do())
}

func (f *unitFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.change("write", off, int64(len(p)), func() error {
		n, err = f.unit.WriteAt(p, off)
		return err
	})
	return n, err
}

func (f *unitFile) Datasync() error { return f.failure("sync", f.unit.Flush()) }

func (f *unitFile) Truncate(int64) error {
	return fault.New(fault.Unsupported, "", "a LUN cannot be resized: %s", f.where)
}

// Allocate has nothing to do: who has a LUN has all of it.
func (f *unitFile) Allocate(off, n int64) error {
	return f.change("allocate", off, n, func() error { return nil })
}

func (f *unitFile) Punch(off, n int64) error {
	return f.change("punch", off, n, func() error { return f.unit.Discard(off, n) })
}

func (f *unitFile) Zero(off, n int64) error {
	return f.change("zero", off, n, func() error { return f.unit.WriteZeroes(off, n) })
}

func (f *unitFile) Clone(src fsx.File, srcOff, dstOff, n int64) error {
	return fsx.CopyRange(f, fsx.UnwrapFile(src), srcOff, dstOff, n)
}

// SeekData finds no holes: a logical unit has none that can be found.
func (f *unitFile) SeekData(off int64) (start, end int64, err error) {
	if off >= f.unit.Size() {
		return 0, 0, io.EOF
	}
	return off, f.unit.Size(), nil
}

// Lock keeps nobody away: other hosts know nothing of locks of this one. Who changes a LUN has its lease (package lunlease).
func (f *unitFile) Lock(fsx.LockMode) error { return nil }

func (f *unitFile) Stat() (fsx.Info, error) {
	return fsx.Info{Links: 1, Size: f.unit.Size(), Allocated: f.unit.Size()}, nil
}

// Close ends the session. What was not synced may be lost.
func (f *unitFile) Close() error {
	if f.registered {
		f.unregister()
	}
	return f.session.Close()
}
