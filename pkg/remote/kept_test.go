package remote_test

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
)

// volatileLUN has a cache that a failed flush empties: what was written since the last one is as it was before.
type volatileLUN struct {
	fsx.File
	fail *atomic.Bool

	mu    sync.Mutex
	undo  []undone
	ended bool
}

type undone struct {
	off int64
	was []byte
}

func (v *volatileLUN) change(off, n int64, do func() error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended {
		return syscall.EIO
	}
	was := fsx.AlignedBuffer(int(n))
	if _, err := v.File.ReadAt(was, off); err != nil {
		return err
	}
	v.undo = append(v.undo, undone{off, was})
	return do()
}

// ReadAt fails, too, once something was lost: who reads at that very moment cannot be helped.
func (v *volatileLUN) ReadAt(p []byte, off int64) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended {
		return 0, syscall.EIO
	}
	return v.File.ReadAt(p, off)
}

func (v *volatileLUN) WriteAt(p []byte, off int64) (n int, err error) {
	err = v.change(off, int64(len(p)), func() error { n, err = v.File.WriteAt(p, off); return err })
	return n, err
}

func (v *volatileLUN) Zero(off, n int64) error {
	return v.change(off, n, func() error { return v.File.Zero(off, n) })
}

func (v *volatileLUN) Datasync() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.fail.Load() && !v.ended {
		v.undo = nil
		return v.File.Datasync()
	}
	v.ended = true
	for i := len(v.undo) - 1; i >= 0; i-- {
		if _, err := v.File.WriteAt(v.undo[i].was, v.undo[i].off); err != nil {
			return err
		}
	}
	v.undo = nil
	return syscall.EIO
}

// volatileDisk is a disk on such a LUN.
func volatileDisk(t *testing.T) (r *rig, id string, d *remote.Disk, fail *atomic.Bool) {
	r = newRig(t)
	id = r.create("v", host.EagerZeroedThick)
	c, _ := r.config(id, "node1")
	fail = &atomic.Bool{}
	open := c.OpenLUN
	c.OpenLUN = func(ctx context.Context, l san.LUN) (fsx.File, error) {
		f, err := open(ctx, l)
		if err != nil {
			return nil, err
		}
		return &volatileLUN{File: f, fail: fail}, nil
	}
	d = r.open(c)
	r.becomes(d, remote.SAN)
	return r, id, d, fail
}

// What a LUN has acknowledged and then loses in a flush that fails is made again through the server: the flush that succeeds there says
// the truth, under a load as well.
func TestFailedFlushLosesNothing(t *testing.T) {
	r, id, d, fail := volatileDisk(t)
	l := startLoad(t, d)
	for range 3 {
		l.more(200)
		fail.Store(true)
		r.becomes(d, remote.NBD)
		l.more(100)
		fail.Store(false)
		r.becomes(d, remote.SAN)
	}
	l.finish(d)
	must(t, d.Close(), r.api("node1").CloseVolume(ctx, id))
	r.stored(id, l.want)
}

// The same when the flush is that of the closing.
func TestFailedLastFlush(t *testing.T) {
	r, id, d, fail := volatileDisk(t)
	want := make([]byte, diskSize)
	for i := range 3 {
		part := want[i<<20 : i<<20+8192]
		copy(part, bytes.Repeat([]byte{byte(i + 1)}, len(part)))
		_, err := d.WriteAt(part, int64(i)<<20)
		must(t, err)
	}
	must(t, d.Flush(), d.WriteZeroes(0, 4096))
	clear(want[:4096])
	copy(want[1<<20:], bytes.Repeat([]byte{9}, 4096))
	_, err := d.WriteAt(want[1<<20:1<<20+4096], 1<<20)
	must(t, err)
	fail.Store(true)
	must(t, d.Close(), r.api("node1").CloseVolume(ctx, id))
	r.stored(id, want)
}
