package fuse

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/export"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Options tune a Server. The zero value is what a worker uses.
type Options struct {
	Threads int          // how many requests are served at once; 0: DefaultThreads
	Log     *slog.Logger // nil: silent
}

// DefaultThreads serve requests; each holds one MaxIO buffer, together the 8 MiB
// that RLIMIT_MEMLOCK lets everybody lock by default.
const DefaultThreads = 32

// Server answers one session. It implements export.Server.
type Server struct {
	dev     *os.File
	threads int
	log     *slog.Logger

	p        export.Params
	stopping atomic.Bool
	gone     atomic.Bool

	requests, resent atomic.Uint64
}

// NewServer serves dev, which stays the caller's and must stay open while Serve runs.
func NewServer(dev *os.File, o Options) *Server {
	s := &Server{dev: dev, threads: o.Threads, log: o.Log}
	if s.threads <= 0 {
		s.threads = DefaultThreads
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// Resized implements export.Server.
func (s *Server) Resized() error {
	return fault.Wrap(NotifyInvalInode(s.dev), "tell the kernel the new size")
}

// Requests is how many requests this server has read, and how many of those the kernel sent a second time.
func (s *Server) Requests() (all, resent uint64) { return s.requests.Load(), s.resent.Load() }

// Serve implements export.Server. A Server serves once. Kinds: Unsupported (kernel cannot resend), Damaged (State).
//
// Protocol: 1. of a successor: RESEND, before anything is read. 2. One thread, until the kernel knows the disk's file. A
// successor that finds INIT's outcome saved may still meet INIT here: its predecessor died between SaveState and the
// answer. 3. All threads.
func (s *Server) Serve(ctx context.Context, p export.Params) error {
	s.p = p
	if len(p.State) > 0 {
		if _, ok := unmarshalState(p.State); !ok {
			return fault.New(fault.Damaged, "detach the disk and attach it again", "the saved state of the FUSE session of %s "+
				"is not one this version wrote", p.Name)
		}
	}
	fd, err := sys.Fd(s.dev)
	if err != nil {
		return err
	}
	defer runtime.KeepAlive(s.dev)
	if p.Takeover {
		if err := Resend(s.dev); errors.Is(err, unix.ENODEV) {
			return nil
		} else if err != nil {
			return fault.Wrap(err, "take over the FUSE session of %s", p.Name)
		}
	}
	threads := make([]*thread, s.threads)
	for i := range threads {
		t, err := newThread(s, fd)
		if err != nil {
			return err
		}
		defer t.free()
		threads[i] = t
	}
	if p.Ready != nil {
		p.Ready()
	}
	if err := threads[0].alone(ctx, len(p.State) > 0); err != nil || s.gone.Load() {
		return err
	}
	return s.run(ctx, threads)
}

// run serves until the device is gone or ctx ends, and waits for every thread.
func (s *Server) run(ctx context.Context, threads []*thread) error {
	ctx, cancel := context.WithCancelCause(ctx) // the first failure stops all threads
	defer cancel(nil)
	var serving, watching sync.WaitGroup
	done := make(chan struct{})
	watching.Go(func() {
		select {
		case <-done:
		case <-ctx.Done():
			s.stopping.Store(true)
			s.wake(len(threads), done)
		}
	})
	for _, t := range threads {
		serving.Go(func() {
			if err := t.loop(); err != nil {
				cancel(err)
			}
		})
	}
	serving.Wait()
	close(done)
	watching.Wait()
	if s.gone.Load() {
		return nil
	}
	return context.Cause(ctx)
}

// wake makes n blocked readers look whether they are to stop, until done is closed.
func (s *Server) wake(n int, done <-chan struct{}) {
	for n > 0 {
		err := wakeReader(s.dev)
		switch {
		case err == nil:
			n--
			continue
		case errors.Is(err, unix.ENODEV):
			return
		case !errors.Is(err, unix.ENOENT): // ENOENT: the file is being forgotten, and the session about to go
			s.log.Error("wake a reader of /dev/fuse", "disk", s.p.Name, "error", err)
		}
		select {
		case <-done:
			return
		case <-time.After(wakeEvery):
		}
	}
}

// wakeEvery is the pause before another try to wake a reader.
const wakeEvery = 10 * time.Millisecond
