package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Phase is where a served disk is.
type Phase string

// The phases.
const (
	Starting Phase = "Starting" // a worker opens the disk; requests wait
	Serving  Phase = "Serving"
	Gone     Phase = "Gone"    // the kernel's device is gone; Stop closes the disk
	Waiting  Phase = "Waiting" // workers die at once; requests wait for the next attempt
	Ended    Phase = "Ended"   // stopped, killed, or could not be opened
)

// State is what is known of a served disk.
type State struct {
	Phase     Phase
	PID       int // of the worker, 0 if there is none
	Restarts  int
	Since     time.Time // when the disk was started
	Size      int64     // bytes, when the worker became ready or grew it
	Poisoned  bool
	Trouble   *fault.Fault // why a request failed; reported when its kind changes, and once a minute
	TroubleAt time.Time
	Requests  uint64 // of the disk's user to the current worker, as it told last while it merged links
	Walls     Walls
	// Transport is how a remote disk is reached now, Skipped what was asked for before it and does not serve.
	Transport string
	Skipped   []remote.Skip
	LastErr   error // why the last worker died, or could not serve; nil if none did
}

// Handle is one served disk. Its methods may be called concurrently.
type Handle struct {
	s     *Supervisor
	spec  Spec
	files Files

	firstReady chan struct{} // closed when a worker serves for the first time
	quit       chan struct{} // closed to end the disk: no further worker
	done       chan struct{} // closed when no worker is left and the files are closed

	mu      sync.Mutex
	state   State
	ready   bool // firstReady is closed
	serving bool // serves is closed
	ending  bool // quit is closed
	current *child
	serves  chan struct{}    // closed while a worker serves
	rebind  []chain.Identity // what the next worker makes descriptors say first
	calls   map[uint64]chan frame
	lastID  uint64
	stopped *outcome // how the disk was closed; nil until a worker said so
}

// outcome is what a worker answered to stop.
type outcome struct{ err error }

// ID is the disk's.
func (h *Handle) ID() string { return h.spec.ID }

// State is a snapshot.
func (h *Handle) State() State {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state
}

// Done is closed when the disk is not served any more and no worker is left.
func (h *Handle) Done() <-chan struct{} { return h.done }

// PidFD is a duplicate of the current worker's pidfd. Kinds: Unavailable (no worker just now).
func (h *Handle) PidFD() (*os.File, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.current == nil || h.current.pidfd == nil {
		return nil, fault.New(fault.Unavailable, "try again", "disk %s has no worker just now", h.spec.ID)
	}
	return sys.Dup(h.current.pidfd)
}

// Grow makes the disk at least size bytes large and has the kernel forget the old size; the block device is the caller's
// to resize (LOOP_SET_CAPACITY). It returns the new size.
func (h *Handle) Grow(ctx context.Context, size int64) (int64, error) {
	var b growBody
	if err := h.call(ctx, opGrow, growBody{Size: size}, &b); err != nil {
		return 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state.Size = b.Size
	return b.Size, nil
}

// SetLinks changes what the next worker opens, after the chain's files or recorded sizes changed.
func (h *Handle) SetLinks(links []chain.Ref) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.spec.Links = append([]chain.Ref(nil), links...)
}

func (h *Handle) config() config {
	h.mu.Lock()
	defer h.mu.Unlock()
	return config{ID: h.spec.ID, Links: h.spec.Links, ReadOnly: h.spec.ReadOnly, Format: h.spec.Format,
		Rebind: h.rebind, NoLocks: h.spec.NoLocks, Scratch: h.files.Scratch != nil, Remote: h.spec.Remote}
}

// Flush makes what was acknowledged durable.
func (h *Handle) Flush(ctx context.Context) error { return h.call(ctx, opFlush, nil, nil) }

// Stats asks the worker.
func (h *Handle) Stats(ctx context.Context) (Stats, error) {
	var s Stats
	err := h.call(ctx, opStats, nil, &s)
	return s, err
}

// Stop closes the disk cleanly: the worker answers what is in flight, flushes, closes the chain and ends. On success, and
// when the worker answered with a failure (Poisoned: what was not flushed may be lost), no worker is left. When ctx ends
// first the worker still stops, and the next Stop tells how; when the worker dies meanwhile, the disk is served on.
// Stopping a disk that was stopped returns what the first one was answered, heard or not; stopping one that ended in
// another way succeeds.
func (h *Handle) Stop(ctx context.Context) error {
	err := h.call(ctx, opStop, nil, nil)
	if o := h.outcome(); o != nil {
		<-h.done
		return o.err
	}
	select {
	case <-h.done:
		return nil
	default:
		return err
	}
}

// outcome is how the disk was closed; nil while no worker has said so.
func (h *Handle) outcome() *outcome {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stopped
}

// Kill ends the worker with SIGKILL and waits for its death: requests in flight wait for a successor.
func (h *Handle) Kill() error {
	h.end()
	h.mu.Lock()
	c := h.current
	h.mu.Unlock()
	var err error
	if c != nil {
		err = c.cmd.Process.Kill()
		if errors.Is(err, os.ErrProcessDone) {
			err = nil
		}
	}
	<-h.done
	return err
}

// close keeps how the disk was closed, whoever still waits for it, and makes the worker the last one.
func (h *Handle) close(fr frame) {
	o := &outcome{}
	if fr.Err != nil {
		o.err = fr.Err
	}
	h.mu.Lock()
	h.stopped = o
	h.mu.Unlock()
	h.end()
}

// end makes the worker that runs now the last one.
func (h *Handle) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ending {
		h.ending = true
		close(h.quit)
	}
}

// final is why the disk ended.
func (h *Handle) final() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.state.LastErr != nil {
		return h.state.LastErr
	}
	return fault.New(fault.Unavailable, "", "the worker of disk %s was ended", h.spec.ID)
}

// call sends a request and waits for the answer. A worker that dies meanwhile makes it Unavailable: the caller asks again
// when the next one serves.
func (h *Handle) call(ctx context.Context, op string, body, into any) error {
	ch := make(chan frame, 1)
	c, id, err := h.register(ch)
	if err != nil {
		return err
	}
	defer h.unregister(c, id, ch)
	// A send that fails means a worker that ends. What it has sent before may not be read yet, and may be how it ended: run
	// closes ch when it is.
	_ = c.ctl.send(op, id, body, nil)
	select {
	case fr, ok := <-ch:
		switch {
		case !ok:
			return h.unavailable()
		case fr.Err != nil:
			return fr.Err
		case into != nil:
			return json.Unmarshal(fr.Body, into)
		}
		return nil
	case <-ctx.Done():
		return fault.New(fault.Timeout, "see hostd's log", "the worker of disk %s did not answer %q: %w", h.spec.ID, op,
			context.Cause(ctx))
	}
}

func (h *Handle) unavailable() error {
	return fault.New(fault.Unavailable, "try again", "disk %s has no worker just now", h.spec.ID)
}

// run keeps a worker running until the disk is ended.
func (h *Handle) run() {
	defer close(h.done)
	defer h.s.forget(h)
	defer h.closeFiles()
	defer h.set(func(st *State) { st.Phase, st.PID = Ended, 0 })
	failures := 0
	for {
		served, err := h.once()
		if h.ended() {
			return
		}
		h.mu.Lock()
		h.state.LastErr, h.state.PID = err, 0
		ready := h.ready
		h.mu.Unlock()
		h.s.o.Log.Warn("worker died", "disk", h.spec.ID, "served", served, "error", err)
		if !ready && fault.KindOf(err) != fault.Unavailable {
			return // the first one said why it cannot; a killed one is tried again
		}
		if failures++; served > steady {
			failures = 0
		}
		if !h.pause(failures) {
			return
		}
		h.set(func(st *State) { st.Restarts++ })
	}
}

// steady is how long a worker must serve for its death to count as an accident.
const steady = 10 * time.Second

// pause waits before the next worker: not at all after an accident, up to Options.Backoff after failures in a row.
func (h *Handle) pause(failures int) bool {
	if failures <= 3 {
		return true
	}
	d := min(10*time.Millisecond<<min(failures-3, 20), h.s.o.Backoff)
	h.set(func(st *State) { st.Phase = Waiting })
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-h.quit:
		return false
	}
}

// once runs one worker to its death and returns how long it served.
func (h *Handle) once() (served time.Duration, err error) {
	h.set(func(st *State) { st.Phase = Starting })
	c, err := h.s.spawn.start(h.s.o, h.spec.ID, h.files)
	if err != nil {
		return 0, err
	}
	h.mu.Lock()
	h.current, h.state.PID = c, c.cmd.Process.Pid
	ending := h.ending
	h.mu.Unlock()
	if ending { // Kill looked before there was anything to kill
		_ = c.cmd.Process.Kill()
	}
	// A send that fails means a worker that died: receive says so.
	_ = c.ctl.send(opConfig, 0, h.config(), nil)
	var failure *fault.Fault
	var since time.Time
	reading := make(chan struct{})
	go func() {
		defer close(reading)
		failure, since = h.listen(c)
	}()
	werr := c.cmd.Wait() // returns when every thread of the worker is dead
	<-reading
	if !since.IsZero() {
		served = time.Since(since)
	}
	h.mu.Lock()
	h.current = nil
	if h.serving {
		h.serving, h.serves = false, make(chan struct{})
	}
	for id, ch := range h.calls {
		close(ch)
		delete(h.calls, id)
	}
	h.mu.Unlock()
	_ = c.ctl.close()
	if c.pidfd != nil {
		c.pidfd.Close()
	}
	if failure != nil {
		return served, failure
	}
	return served, fault.New(fault.Unavailable, "see hostd's log", "the worker of disk %s ended: %s", h.spec.ID, exitText(werr))
}

func exitText(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return fmt.Sprint(err)
}

// listen takes everything that the worker sends, to the last frame it sent before it died.
func (h *Handle) listen(c *child) (failure *fault.Fault, since time.Time) {
	for {
		fr, err := c.ctl.receive()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				h.s.o.Log.Error("read from worker", "disk", h.spec.ID, "error", err)
			}
			return failure, since
		}
		switch fr.Op {
		case evReady:
			since = time.Now()
			h.becomeReady(fr)
		case evGone:
			h.set(func(st *State) { st.Phase = Gone })
		case evPoisoned:
			h.set(func(st *State) { st.Poisoned = true })
		case evTrouble:
			h.set(func(st *State) { st.Trouble, st.TroubleAt = fr.Err, time.Now() })
		case evState:
			h.reached(fr)
		case evFailed:
			failure = fr.Err
		case opAnswer, opStopped:
			if fr.Op == opStopped { // before the worker can be seen dead: it ended because it was asked to
				h.close(fr)
			}
			h.deliver(c, fr)
		case evCommit, evPace, evProgress:
			h.deliver(c, fr)
		}
	}
}

func (h *Handle) becomeReady(fr frame) {
	var r ready
	if err := json.Unmarshal(fr.Body, &r); err != nil {
		h.s.o.Log.Error("read from worker", "disk", h.spec.ID, "error", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state.Phase, h.state.Size, h.state.Poisoned, h.state.Walls = Serving, r.Size, r.Poisoned, r.Walls
	h.rebind = nil // done, or there was none
	if !h.serving {
		h.serving = true
		close(h.serves)
	}
	if !h.ready {
		h.ready = true
		close(h.firstReady)
	}
}

func (h *Handle) ended() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ending
}

func (h *Handle) set(f func(*State)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(&h.state)
}

func (h *Handle) closeFiles() {
	for _, f := range []*os.File{h.files.Dir, h.files.Device, h.files.Table, h.files.Scratch} {
		if f != nil {
			f.Close()
		}
	}
}
