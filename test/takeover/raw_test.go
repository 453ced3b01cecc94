package takeover

import (
	"context"
	"io"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
)

// rawDisk is the plainest disk there is: one file. It shows what the data path does without a format in it.
type rawDisk struct {
	file fsx.File
	size int64
}

const rawName = "raw.img"

func openRaw(_ context.Context, r worker.OpenRequest) (worker.Disk, error) {
	flag := fsx.ReadWrite | fsx.Direct
	if r.ReadOnly {
		flag = fsx.ReadOnly | fsx.Direct
	}
	f, err := r.Dir.Open(rawName, flag)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &rawDisk{file: f, size: st.Size}, nil
}

func (d *rawDisk) inside(off, n int64) error {
	if off < 0 || n < 0 || off+n > d.size {
		return fault.New(fault.OutOfRange, "", "%d bytes at %d of a disk of %d", n, off, d.size)
	}
	return nil
}

func (d *rawDisk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.inside(off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := d.file.ReadAt(p, off)
	if err == io.EOF {
		clear(p[n:])
		return len(p), nil
	}
	return n, err
}

func (d *rawDisk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.inside(off, int64(len(p))); err != nil {
		return 0, err
	}
	return d.file.WriteAt(p, off)
}

func (d *rawDisk) Flush() error                          { return d.file.Datasync() }
func (d *rawDisk) Discard(off, n int64) error            { return d.file.Punch(off, n) }
func (d *rawDisk) WriteZeroes(off, n int64) error        { return d.file.Zero(off, n) }
func (d *rawDisk) Size() int64                           { return d.size }
func (d *rawDisk) Grow(_ context.Context, n int64) error { d.size = n; return d.file.Truncate(n) }
func (d *rawDisk) Close() error {
	return d.file.Close()
}
