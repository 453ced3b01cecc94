package lun_test

import (
	"sync/atomic"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// mortal is a path to the LUN that ends with its machine: whatever comes later does not reach the medium.
type mortal struct {
	fsx.File
	dead     *atomic.Bool
	failSync *atomic.Bool // the next sync fails
}

func (f mortal) do(do func() error) error {
	if f.dead.Load() {
		return fault.New(fault.Unavailable, "", "this machine is dead")
	}
	return do()
}

func (f mortal) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.do(func() error { n, err = f.File.ReadAt(p, off); return err })
	return n, err
}

func (f mortal) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.do(func() error { n, err = f.File.WriteAt(p, off); return err })
	return n, err
}

func (f mortal) Datasync() error {
	if f.failSync.CompareAndSwap(true, false) {
		return fault.New(fault.Internal, "", "the LUN's cache has lost something")
	}
	return f.do(f.File.Datasync)
}

func (f mortal) Punch(off, n int64) error {
	return f.do(func() error { return f.File.Punch(off, n) })
}

func (f mortal) Zero(off, n int64) error {
	return f.do(func() error { return f.File.Zero(off, n) })
}

// kill is the end of the machine's power: its connections break, its writes do not happen, and it says nothing to anybody.
func (m *machine) kill() {
	m.dead.Store(true)
	m.mute()
	m.quit()
}
