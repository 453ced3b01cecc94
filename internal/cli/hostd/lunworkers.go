package hostd

import (
	"bytes"
	"context"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/local"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/lun"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
)

// innerWorkers are a metadata server as its inner host wants it: disks are served in this process.
type innerWorkers struct{ s *lun.Server }

var _ local.Workers = innerWorkers{}

// Start implements local.Workers.
func (w innerWorkers) Start(ctx context.Context, spec local.WorkerSpec, _ *os.File) (local.Worker, error) {
	d, err := w.s.Serve(ctx, lun.ServeSpec{ID: spec.ID, Links: spec.Links, ReadOnly: spec.ReadOnly, Format: spec.Format, NoLocks: spec.NoLocks})
	if err != nil {
		return nil, err
	}
	return innerServed{d}, nil
}

// router serves what is lent to other hosts in this process, and the rest by processes.
type router struct {
	workers
	l *luns
}

// Start implements local.Workers.
func (r router) Start(ctx context.Context, spec local.WorkerSpec, old *os.File) (local.Worker, error) {
	if !spec.Lent {
		return r.workers.Start(ctx, spec, old)
	}
	d, err := r.l.shares[spec.Datastore].Serve(ctx, lun.ServeSpec{ID: spec.ID, Dir: spec.Dir, Links: spec.Links, ReadOnly: spec.ReadOnly,
		Format: spec.Format, NoLocks: spec.NoLocks})
	if err != nil {
		return nil, err
	}
	return innerServed{d}, nil
}

type innerServed struct{ *lun.Serving }

// State implements local.Worker.
func (s innerServed) State() local.WorkerState {
	return local.WorkerState{PID: os.Getpid(), Size: s.Size(), Requests: s.Requests(), Ended: s.Ended(), Poisoned: s.Poisoned()}
}

// remoteWorkers is a worker.Supervisor for disks that another host has open.
type remoteWorkers struct {
	s     *worker.Supervisor
	l     *luns
	falls atomic.Int64 // changes from SAN to NBD that were seen

	mu   sync.Mutex
	live map[*worker.Handle]lun.WorkerSpec
}

var _ lun.Workers = (*remoteWorkers)(nil)

// spec is what a worker is told now.
func (w *remoteWorkers) spec(ctx context.Context, s lun.WorkerSpec) (*worker.RemoteSpec, error) {
	cert, err := w.l.auth.get()
	if err != nil {
		return nil, err
	}
	peers, err := w.l.peers.list(ctx)
	if err != nil {
		return nil, err
	}
	r := &worker.RemoteSpec{Datastore: s.Datastore, Volume: s.ID, Node: w.l.o.Node, Order: s.Order, Peers: peers,
		Certificate: cert.cert, Key: cert.key, CA: w.l.auth.pem, ServerName: serverName}
	for _, d := range w.l.o.LUNs {
		if d.Name == s.Datastore && slices.Contains(s.Order, remote.SAN) {
			r.LUNs, r.Credentials = []string{d.Where}, d.credentials(w.l.o.Node)
		}
	}
	return r, nil
}

// Start implements lun.Workers.
func (w *remoteWorkers) Start(ctx context.Context, s lun.WorkerSpec, old *os.File) (lun.Worker, error) {
	r, err := w.spec(ctx, s)
	if err != nil {
		return nil, err
	}
	h, err := w.s.Adopt(ctx, worker.Spec{ID: s.ID, ReadOnly: s.ReadOnly, Remote: r,
		Device: worker.Device{Fuse: s.Device.Fuse, Table: s.Device.Table, Scratch: s.Device.Scratch}}, old, true)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.live == nil {
		w.live = map[*worker.Handle]lun.WorkerSpec{}
	}
	w.live[h] = s
	return &remoteServed{Handle: h, w: w}, nil
}

// refreshEvery is how often it is looked whether the other hosts have other addresses, or this one another certificate.
const refreshEvery = 5 * time.Second

// refresh tells workers what has changed until ctx ends.
func (w *remoteWorkers) refresh(ctx context.Context) {
	t := time.NewTicker(refreshEvery)
	defer t.Stop()
	told := map[*worker.Handle]*worker.RemoteSpec{}
	replaced := map[*worker.Handle]bool{}
	for {
		w.mu.Lock()
		now := map[*worker.Handle]lun.WorkerSpec{}
		for h, s := range w.live {
			if h.State().Phase == worker.Ended {
				delete(w.live, h)
				delete(told, h)
				delete(replaced, h)
				continue
			}
			now[h] = s
		}
		w.mu.Unlock()
		for h, s := range now {
			w.returned(ctx, h, s, replaced)
			r, err := w.spec(ctx, s)
			if err != nil {
				w.l.log.Warn("a worker was not told of other hosts", "disk", s.ID, "error", err)
				continue
			}
			if last := told[h]; last != nil && slices.Equal(last.Peers, r.Peers) && bytes.Equal(last.Certificate, r.Certificate) {
				continue
			}
			if err := h.SetRemote(*r); err != nil {
				w.l.log.Warn("a worker was not told of other hosts", "disk", s.ID, "error", err)
				continue
			}
			told[h] = r
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// remoteServed is a Handle as lun wants it.
type remoteServed struct {
	*worker.Handle
	w *remoteWorkers

	mu   sync.Mutex
	last string // transport
}

// Grow implements lun.Worker.
func (s *remoteServed) Grow(ctx context.Context, size int64) error {
	_, err := s.Handle.Grow(ctx, size)
	return err
}

// State implements lun.Worker.
func (s *remoteServed) State() lun.WorkerState {
	st := s.Handle.State()
	s.mu.Lock()
	if s.last == remote.SAN && st.Transport == remote.NBD {
		s.w.falls.Add(1)
	}
	s.last = st.Transport
	s.mu.Unlock()
	out := lun.WorkerState{PID: st.PID, Restarts: st.Restarts, Size: st.Size, Ended: st.Phase == worker.Ended, Poisoned: st.Poisoned, Transport: st.Transport}
	for _, skip := range st.Skipped {
		var why error = fault.New(fault.Internal, "", "no reason was told")
		if skip.Reason != nil {
			why = skip.Reason
		}
		out.Skipped = append(out.Skipped, host.NotUsed(skip.Transport, why))
	}
	if st.Trouble != nil {
		out.Trouble = &host.Trouble{At: st.TroubleAt, Fault: st.Trouble}
	}
	return out
}
