package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/export/fuse"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/loop"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker/table"
)

// DeviceTarget is a disk that a worker serves as a loop device; this process is its hostd.
type deviceTarget struct {
	*os.File // the device, past the page cache
	store    *store
	id       string
	epoch    int64
	name     string
	session  *fuse.Session
	table    *os.File
	sup      *worker.Supervisor
	handle   *worker.Handle
	loop     *loop.Device
}

var devices atomic.Int64

func newDeviceTarget(ctx context.Context, b *bench, size int64) (_ target, err error) {
	s, err := b.store()
	if err != nil {
		return nil, err
	}
	t := &deviceTarget{store: s, name: fmt.Sprintf("vmdk-csi-bench-%d-%d", os.Getpid(), devices.Add(1))}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	d, err := s.thin(ctx, "disk", size, nil, "")
	if err != nil {
		return nil, err
	}
	if err := t.serve(ctx, d.ID); err != nil {
		return nil, err
	}
	f, err := t.session.OpenDisk(ctx, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if t.loop, err = loop.Attach(f, loop.Options{DirectIO: true}); err != nil {
		return nil, err
	}
	if err := t.session.CloseMount(); err != nil {
		return nil, err
	}
	t.File, err = os.OpenFile(t.loop.Path(), os.O_RDWR|unix.O_DIRECT, 0)
	return t, err
}

func (t *deviceTarget) serve(ctx context.Context, id string) error {
	o, err := t.store.volumes.OpenForAttach(ctx, id, false)
	if err != nil {
		return err
	}
	defer o.Dir.Close()
	t.id, t.epoch = id, o.Epoch
	if t.session, err = fuse.NewSession(t.name); err != nil {
		return err
	}
	if t.table, err = table.Create(); err != nil {
		return err
	}
	t.sup = worker.NewSupervisor(worker.Options{})
	t.handle, err = t.sup.Start(ctx, worker.Spec{ID: t.name, Dir: o.Dir, Links: o.Refs, Format: vmdk.Thin,
		Device: worker.Device{Fuse: t.session.Dev, Table: t.table}})
	return err
}

func (t *deviceTarget) snapshot(ctx context.Context, name string) error {
	_, err := t.store.volumes.Snapshot(ctx, host.SnapshotSpec{Name: name, Disk: t.id}, time.Time{}, served{t.handle})
	return err
}

// Served is the disk as package volume changes it.
type served struct{ *worker.Handle }

// Grow implements volume.Server.
func (s served) Grow(ctx context.Context, size int64) error {
	_, err := s.Handle.Grow(ctx, size)
	return err
}

// Close gives everything back, in the opposite order.
func (t *deviceTarget) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	if t.File != nil {
		errs = append(errs, t.File.Close())
	}
	if t.loop != nil {
		errs = append(errs, t.loop.Detach(), loop.WaitReleased(ctx, t.loop.Number, "/"+t.name))
	}
	if t.handle != nil {
		errs = append(errs, t.handle.Stop(ctx))
	}
	if t.sup != nil {
		errs = append(errs, t.sup.Close())
	}
	if t.session != nil {
		errs = append(errs, t.session.Close())
	}
	if t.table != nil {
		errs = append(errs, t.table.Close())
	}
	if t.handle != nil {
		errs = append(errs, t.store.volumes.Release(ctx, t.id, t.epoch, false))
	}
	return errors.Join(append(errs, t.store.leave())...)
}
