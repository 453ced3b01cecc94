package hostd

import (
	"context"
	"os"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/local"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
)

// workers is a worker.Supervisor as host/local wants it.
type workers struct{ s *worker.Supervisor }

var _ local.Workers = workers{}

// Start implements local.Workers.
func (w workers) Start(ctx context.Context, spec local.WorkerSpec, old *os.File) (local.Worker, error) {
	h, err := w.s.Adopt(ctx, worker.Spec{
		ID: spec.ID, Dir: spec.Dir, Links: spec.Links, ReadOnly: spec.ReadOnly, Format: vmdk.Format(spec.Format),
		Device:  worker.Device{Fuse: spec.Device.Fuse, Table: spec.Device.Table, Scratch: spec.Device.Scratch},
		NoLocks: spec.NoLocks,
	}, old, true)
	if err != nil {
		return nil, err
	}
	return served{h}, nil
}

type served struct{ *worker.Handle }

// Grow implements local.Worker.
func (s served) Grow(ctx context.Context, size int64) error {
	_, err := s.Handle.Grow(ctx, size)
	return err
}

// State implements local.Worker.
func (s served) State() local.WorkerState {
	st := s.Handle.State()
	out := local.WorkerState{
		PID: st.PID, Restarts: st.Restarts, Size: st.Size, Requests: st.Requests, Ended: st.Phase == worker.Ended, Poisoned: st.Poisoned,
	}
	if st.Trouble != nil {
		out.Trouble = &host.Trouble{At: st.TroubleAt, Fault: st.Trouble}
	}
	return out
}
