package lun_test

import (
	"context"
	"os"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/lun"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
)

// direct is a client without a network.
type direct struct{ m *machine }

func (m *machine) client() lun.Client { return direct{m} }

func (d direct) server() (remote.Datastore, error) {
	for _, m := range d.m.r.machines {
		if s, err := m.owner.Lookup(); err == nil {
			return s, nil
		}
	}
	return nil, fault.New(fault.Unavailable, "", "nobody serves")
}

func (d direct) Create(ctx context.Context, spec host.DiskSpec) (out host.Disk, err error) {
	s, err := d.server()
	if err != nil {
		return out, err
	}
	return s.Create(ctx, spec)
}

func (d direct) Delete(ctx context.Context, id string) error {
	s, err := d.server()
	if err != nil {
		return err
	}
	return s.Delete(ctx, id)
}

func (d direct) Get(ctx context.Context, id string) (out host.Disk, err error) {
	s, err := d.server()
	if err != nil {
		return out, err
	}
	return s.Get(ctx, id)
}

func (d direct) List(ctx context.Context, max int, token string) ([]host.Disk, string, error) {
	s, err := d.server()
	if err != nil {
		return nil, "", err
	}
	return s.List(ctx, max, token)
}

func (d direct) Expand(ctx context.Context, id string, size int64) (out host.Disk, err error) {
	s, err := d.server()
	if err != nil {
		return out, err
	}
	return s.Expand(ctx, id, size)
}

func (d direct) CreateSnapshot(ctx context.Context, spec host.SnapshotSpec) (out host.Snapshot, err error) {
	s, err := d.server()
	if err != nil {
		return out, err
	}
	return s.CreateSnapshot(ctx, spec)
}

func (d direct) DeleteSnapshot(ctx context.Context, id string) error {
	s, err := d.server()
	if err != nil {
		return err
	}
	return s.DeleteSnapshot(ctx, id)
}

func (d direct) GetSnapshot(ctx context.Context, id string) (out host.Snapshot, err error) {
	s, err := d.server()
	if err != nil {
		return out, err
	}
	return s.GetSnapshot(ctx, id)
}

func (d direct) ListSnapshots(ctx context.Context, disk string, max int, token string) ([]host.Snapshot, string, error) {
	s, err := d.server()
	if err != nil {
		return nil, "", err
	}
	return s.ListSnapshots(ctx, disk, max, token)
}

func (d direct) OpenVolume(ctx context.Context, id string, readOnly bool) (out remote.Opened, err error) {
	s, err := d.server()
	if err != nil {
		return out, err
	}
	o, err := s.Open(ctx, id, d.m.name, readOnly)
	return remote.Opened{Disk: o.Disk, Epoch: o.Epoch}, err
}

func (d direct) CloseVolume(ctx context.Context, id string) error {
	s, err := d.server()
	if err != nil {
		return err
	}
	return s.Close(ctx, id, d.m.name)
}

func (d direct) Space(ctx context.Context) (total, free int64, err error) {
	s, err := d.server()
	if err != nil {
		return 0, 0, err
	}
	return s.Space(ctx)
}

// workers serve disks in this process.
type workers struct{ m *machine }

func (w *workers) Start(ctx context.Context, spec lun.WorkerSpec, _ *os.File) (lun.Worker, error) {
	s, err := direct{w.m}.server()
	if err != nil {
		return nil, err
	}
	o, err := s.Open(ctx, spec.ID, w.m.name, spec.ReadOnly)
	if err != nil {
		return nil, err
	}
	return &worker{o.Export.Device}, nil
}

type worker struct{ d block.Device }

func (w *worker) Grow(context.Context, int64) error { return nil }
func (w *worker) Stop(context.Context) error        { return nil }
func (w *worker) Kill() error                       { return nil }
func (w *worker) PidFD() (*os.File, error) {
	return nil, fault.New(fault.Unavailable, "", "no process")
}
func (w *worker) State() lun.WorkerState {
	return lun.WorkerState{PID: os.Getpid(), Transport: remote.NBD, Size: w.d.Size()}
}
