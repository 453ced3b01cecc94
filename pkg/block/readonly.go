package block

import "github.com/vmdk-csi/vmdk-csi/pkg/fault"

type readOnly struct{ d Device }

// ReadOnly is d without the means to change it. Its Flush has nothing to do.
func ReadOnly(d Device) Device { return readOnly{d} }

func refused() error { return fault.New(fault.ReadOnly, "", "the disk is attached read-only") }

func (r readOnly) ReadAt(p []byte, off int64) (int, error) { return r.d.ReadAt(p, off) }
func (r readOnly) WriteAt([]byte, int64) (int, error)      { return 0, refused() }
func (r readOnly) Flush() error                            { return nil }
func (r readOnly) Discard(_, _ int64) error                { return refused() }
func (r readOnly) WriteZeroes(_, _ int64) error            { return refused() }
func (r readOnly) Size() int64                             { return r.d.Size() }
