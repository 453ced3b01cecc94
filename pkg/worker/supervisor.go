package worker

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Options are a Supervisor's. The zero value runs the own program with the argument "disk".
type Options struct {
	Command []string      // a worker's argv; the disk's id is appended
	Env     []string      // nil: this process's
	Stderr  *os.File      // where workers log; nil: this process's
	Log     *slog.Logger  // nil: silent
	Backoff time.Duration // longest pause between restarts; 0: 5 s
	// Paused, if set, is told how long a snapshot kept the requests of a disk out.
	Paused func(time.Duration)
}

// Device is what a disk is served on; the Supervisor duplicates what it is given.
type Device struct {
	Fuse  *os.File // the session's descriptor
	Table *os.File // the memfd of pkg/worker/table
	// Scratch is the redo log of a read-only attachment: the device is writable, the disk is not. nil: the device is not.
	Scratch *os.File
}

// Spec is a disk to serve.
type Spec struct {
	ID       string      // names the disk's file in its session
	Dir      *os.File    // the disk's directory; the Supervisor duplicates it
	Links    []chain.Ref // base first
	Device   Device
	ReadOnly bool
	// Format says how a flat disk holds its space: a thick one keeps it when the guest discards.
	Format vmdk.Format
	// NoLocks takes no byte locks.
	NoLocks bool
	// Remote, if it is not nil, is a disk that another host has open: there are no Dir and no Links.
	Remote *RemoteSpec
}

// Supervisor runs the workers of one hostd.
type Supervisor struct {
	o     Options
	spawn *spawner

	mu      sync.Mutex
	closed  bool
	handles map[*Handle]struct{}
}

// NewSupervisor starts a supervisor without workers.
func NewSupervisor(o Options) *Supervisor {
	if len(o.Command) == 0 {
		o.Command = []string{"/proc/self/exe", "disk"}
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Backoff <= 0 {
		o.Backoff = 5 * time.Second
	}
	return &Supervisor{o: o, spawn: newSpawner(), handles: map[*Handle]struct{}{}}
}

// Close kills every worker and waits for its death. The disks stay as a crash leaves them; whoever holds their devices can
// have them adopted.
func (s *Supervisor) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	all := make([]*Handle, 0, len(s.handles))
	for h := range s.handles {
		all = append(all, h)
	}
	s.mu.Unlock()
	var errs []error
	for _, h := range all {
		errs = append(errs, h.Kill())
	}
	s.spawn.close()
	return errors.Join(errs...)
}

// Start serves a disk and returns when its device answers. The worker is told from the table whether it takes a served
// disk over. When it fails nothing is left running. Kinds: those of the Opener, Timeout (ctx), Precondition (closed).
func (s *Supervisor) Start(ctx context.Context, spec Spec) (*Handle, error) {
	h, err := s.newHandle(spec)
	if err != nil {
		return nil, err
	}
	select {
	case <-h.firstReady:
		return h, nil
	case <-h.done:
		return nil, h.final()
	case <-ctx.Done():
		return nil, errors.Join(fault.New(fault.Timeout, "see the log of the disk's worker", "start a worker for disk %s: %w",
			spec.ID, context.Cause(ctx)), h.Kill())
	}
}

// Adopt serves a disk that a worker of another supervisor served, or still serves: kill says whether to end that one. It
// waits for the death of old (a pidfd, may be nil), then starts a worker. The pidfd spares a useless start; the proof that
// no older worker is left is the claim on the table, which every worker takes.
func (s *Supervisor) Adopt(ctx context.Context, spec Spec, old *os.File, kill bool) (*Handle, error) {
	if old != nil {
		if kill {
			// Where hostd is a pod, the former worker is in the former pod's PID namespace: only that one's hostd, or its
			// end, can end it, and all that is left is to wait.
			if err := sys.PidfdKill(old); err != nil && !errors.Is(err, sys.ErrOtherNamespace) {
				return nil, fault.Wrap(err, "end the former worker of disk %s", spec.ID)
			}
		}
		if err := sys.PidfdWait(ctx, old); err != nil {
			return nil, fault.New(fault.Timeout, "look why the former hostd does not let go", "the former worker of disk %s "+
				"still runs: %w", spec.ID, err)
		}
	}
	return s.Start(ctx, spec)
}

func (s *Supervisor) newHandle(spec Spec) (*Handle, error) {
	h := &Handle{s: s, spec: spec, firstReady: make(chan struct{}), done: make(chan struct{}), quit: make(chan struct{}),
		serves: make(chan struct{}), calls: map[uint64]chan frame{}}
	for _, p := range []struct {
		to   **os.File
		from *os.File
	}{{&h.files.Dir, spec.Dir}, {&h.files.Device, spec.Device.Fuse}, {&h.files.Table, spec.Device.Table}, {&h.files.Scratch, spec.Device.Scratch}} {
		if p.from == nil && p.to == &h.files.Scratch || spec.Remote != nil && p.to == &h.files.Dir {
			continue
		}
		f, err := sys.Dup(p.from)
		if err != nil {
			h.closeFiles()
			return nil, fault.Wrap(err, "keep the descriptors of disk %s", spec.ID)
		}
		*p.to = f
	}
	if spec.Remote != nil { // in the directory's place
		null, err := os.Open(os.DevNull)
		if err != nil {
			h.closeFiles()
			return nil, err
		}
		h.files.Dir = null
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		h.closeFiles()
		return nil, fault.New(fault.Precondition, "", "the supervisor is closed")
	}
	s.handles[h] = struct{}{}
	h.state.Since = time.Now()
	go h.run()
	return h, nil
}

func (s *Supervisor) forget(h *Handle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.handles, h)
}
