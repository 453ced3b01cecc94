package lun

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// ServeSpec is a disk that the inner host has acquired and wants served.
type ServeSpec struct {
	ID       string
	Dir      *os.File    // the disk's directory; nil: the store's
	Links    []chain.Ref // base first
	ReadOnly bool
	Format   host.DiskFormat
	NoLocks  bool
}

// Serving is a disk that is open in this process: what a worker process is elsewhere. Nodes reach it over NBD, and have block
// maps of it.
type Serving struct {
	s        *Server
	spec     ServeSpec
	dir      fsx.Dir
	chain    *chain.Chain
	pending  *chain.MemoryPending // nil if read-only
	requests atomic.Uint64
	poisoned atomic.Bool

	mu       sync.Mutex
	changing int // changes of the links or the size that run or wait for maps: none is given out
	maps     int // that are out, or being made
	ended    bool
	free     chan struct{} // closed and replaced when maps becomes 0
}

// Serve opens a disk for the inner host. The inner host has made this server's identity the owner in the manifest.
func (s *Server) Serve(_ context.Context, spec ServeSpec) (*Serving, error) {
	dir, err := s.diskDir(spec)
	if err != nil {
		return nil, err
	}
	spec.Dir = nil // it is the caller's
	w := &Serving{s: s, spec: spec, dir: dir, free: make(chan struct{})}
	o := chain.Options{ReadOnly: spec.ReadOnly, Direct: true, Format: vmdk.Format(spec.Format), Locks: !spec.NoLocks}
	if !spec.ReadOnly {
		w.pending = &chain.MemoryPending{}
		o.Pending = w.pending
	}
	if w.chain, err = chain.Open(dir, spec.Links, o); err != nil {
		dir.Close()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[spec.ID] = w
	return w, nil
}

func (s *Server) diskDir(spec ServeSpec) (fsx.Dir, error) {
	if spec.Dir != nil {
		return fsx.FromFile(spec.Dir)
	}
	all, err := s.store.Root().Sub("volumes")
	if err != nil {
		return nil, err
	}
	defer all.Close()
	return all.Sub(spec.ID)
}

// serving is the disk that is open under an id, nil if none is.
func (s *Server) serving(id string) *Serving {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[id]
}

// recallTime is how long a change waits for block maps to be given back: who has one hears of it at once, and who is silent
// loses it before long. The caller asks again.
const recallTime = 10 * time.Second

// alone runs a change that nobody may have a map during: those that are out are recalled, and none is made meanwhile.
func (w *Serving) alone(ctx context.Context, do func() error) error {
	w.mu.Lock()
	w.changing++
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.changing--
		w.mu.Unlock()
	}()
	if err := w.recall(ctx); err != nil {
		return err
	}
	return do()
}

// recall gets all maps of the disk back, and waits until nothing uses its chain for one.
func (w *Serving) recall(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.s.c.RecallTime)
	defer cancel()
	if m := w.s.Maps(); m != nil {
		if err := m.Recall(ctx, w.spec.ID); err != nil {
			return err
		}
	}
	for {
		w.mu.Lock()
		out, free := w.maps, w.free
		w.mu.Unlock()
		if out == 0 {
			return nil
		}
		select {
		case <-free:
		case <-ctx.Done():
			return fault.New(fault.InProgress, "Try again.", "disk %s has %d block maps out: %w", w.spec.ID, out, ctx.Err())
		}
	}
}

// Grow makes the disk larger.
func (w *Serving) Grow(ctx context.Context, size int64) error {
	if size <= w.chain.Size() {
		return nil
	}
	return w.alone(ctx, func() error { return w.noted(w.chain.Grow(ctx, size)) })
}

// Snapshot is chain.Chain.Snapshot.
func (w *Serving) Snapshot(ctx context.Context, child string, extentSize int64, commit func(parent, child *vmdk.Info) error) error {
	return w.alone(ctx, func() error {
		return w.noted(w.chain.Snapshot(ctx, chain.SnapshotParams{Child: child, ExtentSize: extentSize, Commit: commit}))
	})
}

// Merge is chain.Chain.Merge.
func (w *Serving) Merge(ctx context.Context, p chain.MergeParams) error {
	return w.alone(ctx, func() error { return w.noted(w.chain.Merge(ctx, p)) })
}

// MergeCost is chain.Chain.MergeCost.
func (w *Serving) MergeCost(_ context.Context, lower int) (down, up int64, err error) {
	return w.chain.MergeCost(lower)
}

// SetLinks has no successor to tell: whoever opens the disk after this process reads the manifest.
func (w *Serving) SetLinks([]chain.Ref) {}

// PidFD says that there is no process to wait for.
func (w *Serving) PidFD() (*os.File, error) {
	return nil, fault.New(fault.Unavailable, "", "disk %s is served by this process", w.spec.ID)
}

// Stop gets the maps back and closes the disk cleanly. Unavailable: a map is out still, and the disk is served on.
func (w *Serving) Stop(ctx context.Context) error {
	var closed error
	err := w.alone(ctx, func() error {
		w.end()
		closed = w.chain.Close()
		w.dir.Close()
		return nil
	})
	if err != nil {
		return fault.New(fault.Unavailable, "Try again.", "%w", err)
	}
	return closed
}

// Kill leaves the disk as it is.
func (w *Serving) Kill() error {
	if !w.end() {
		return nil
	}
	err := w.chain.Abandon()
	w.dir.Close()
	return err
}

// end forgets the disk, and says whether this call did.
func (w *Serving) end() bool {
	w.mu.Lock()
	first := !w.ended
	w.ended = true
	w.mu.Unlock()
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.s.open[w.spec.ID] == w {
		delete(w.s.open, w.spec.ID)
	}
	return first
}

func (w *Serving) noted(err error) error {
	if err = w.s.lost(err); fault.KindOf(err) == fault.Unavailable {
		return err
	}
	if errors.Is(err, fault.Poisoned) {
		w.poisoned.Store(true)
	}
	return err
}

// Size is the disk's, in bytes.
func (w *Serving) Size() int64 { return w.chain.Size() }

// Requests counts those of the disk's user that came over NBD.
func (w *Serving) Requests() uint64 { return w.requests.Load() }

// Ended says that the disk is not served any more.
func (w *Serving) Ended() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ended
}

// Poisoned says that a sync failed.
func (w *Serving) Poisoned() bool { return w.poisoned.Load() }
