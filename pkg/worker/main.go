package worker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/export"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker/table"
)

// Params is what Main works with.
type Params struct {
	Files     Files
	Open      Opener // nil: OpenChain
	NewServer func(dev *os.File, log *slog.Logger) export.Server
	Log       *slog.Logger // nil: silent
	// NoWalls leaves Landlock, seccomp and capabilities alone: for a Main that shares its process with something else.
	NoWalls bool
}

// Files are the descriptors that a worker inherits; Main closes them.
type Files struct {
	Control *os.File // SOCK_SEQPACKET
	Dir     *os.File // the disk's directory
	Device  *os.File // what Params.NewServer serves
	Table   *os.File // of pkg/worker/table
	Scratch *os.File // the redo log of a read-only attachment, nil if there is none
}

// Inherited are the files at the numbers where a Supervisor puts them. Whether there is a scratch file is in the first
// frame: its number may be another file's else.
func Inherited() Files {
	return Files{Control: os.NewFile(3, "control"), Dir: os.NewFile(4, "dir"), Device: os.NewFile(5, "device"),
		Table: os.NewFile(6, "table")}
}

// scratchFD is where a Supervisor puts the scratch file.
const scratchFD = 7

// Procs is GOMAXPROCS of a worker. Its threads sit in system calls most of the time, and a thread that comes back must not
// wait for the scheduler to notice (tens of microseconds a request).
const Procs = 40

// configDeadline bounds the wait for a supervisor that was killed while it started us.
const configDeadline = 30 * time.Second

// Main is a worker: it serves one disk until it is stopped, and returns nil when the disk was closed cleanly. The program
// ends after it returns. See the package's documentation for what happens in which order.
func Main(ctx context.Context, p Params) error {
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	if p.Open == nil {
		p.Open = OpenChain
	}
	runtime.GOMAXPROCS(max(Procs, runtime.NumCPU()))
	ctl, err := newLink(p.Files.Control)
	if err != nil {
		return err
	}
	defer func() { _ = ctl.close() }()
	w := &process{p: p, ctl: ctl}
	err = w.run(ctx)
	if err != nil {
		// The supervisor is told why; should it be gone, the log is all there is.
		_ = ctl.send(evFailed, 0, nil, err)
	}
	return err
}

// process is a running worker.
type process struct {
	p      Params
	ctl    *link
	cfg    config
	table  *table.Table
	disk   *guard
	server export.Server
	walls  Walls
	stop   context.CancelCauseFunc
	ended  <-chan struct{} // closed when nothing of the supervisor is read any more

	changes changes
	remote  *remoteDisk // nil: the disk is in this host's directory
}

// errStop is the cause with which a stop request ends Serve.
var errStop = errors.New("stopped by the supervisor")

func (w *process) run(ctx context.Context) error {
	defer w.p.Files.Device.Close()
	defer w.p.Files.Table.Close()
	if err := w.configure(); err != nil {
		return err
	}
	if w.p.Files.Scratch != nil {
		defer w.p.Files.Scratch.Close()
	}
	claim, err := table.Claim(w.p.Files.Table)
	if err != nil {
		return err
	}
	defer func() { _ = claim.Close() }()
	if w.table, err = table.Open(w.p.Files.Table); err != nil {
		return err
	}
	defer func() { _ = w.table.Close() }()
	if !w.p.NoWalls {
		w.walls = buildWalls(w.p.Files.Dir, w.cfg.Remote)
	}
	started := ready{Generation: w.table.Begin(), Takeover: w.table.Served(), Pending: w.table.Len(),
		Poisoned: w.table.Poisoned(), Walls: w.walls}
	if w.cfg.Remote != nil {
		defer w.p.Files.Dir.Close()
		err = w.open(ctx, nil, started)
	} else {
		var dir fsx.Dir
		if dir, err = w.dir(); err != nil {
			return err
		}
		defer func() { _ = dir.Close() }()
		err = w.open(ctx, dir, started)
	}
	if err != nil {
		return err
	}
	started.Size = w.disk.Size()
	return w.serve(ctx, started)
}

func (w *process) configure() error {
	_ = w.ctl.c.SetReadDeadline(time.Now().Add(configDeadline))
	fr, err := w.ctl.receive()
	if err != nil {
		return fault.Wrap(err, "wait for the supervisor")
	}
	_ = w.ctl.c.SetReadDeadline(time.Time{})
	if fr.Op != opConfig {
		return fault.New(fault.Internal, "", "the supervisor began with %q", fr.Op)
	}
	if err := json.Unmarshal(fr.Body, &w.cfg); err != nil {
		return err
	}
	if w.cfg.Scratch && w.p.Files.Scratch == nil {
		w.p.Files.Scratch = os.NewFile(scratchFD, "scratch")
	}
	return nil
}

func (w *process) open(ctx context.Context, dir fsx.Dir, started ready) error {
	if !w.cfg.ReadOnly && dir != nil {
		// Not for a take-over only: when hostd and the node plugin died together, the dead worker's device and table are
		// gone, and its successor seems to be the first.
		if err := settle(dir); err != nil {
			return err
		}
	}
	req := OpenRequest{ID: w.cfg.ID, Dir: dir, Links: w.cfg.Links, ReadOnly: w.cfg.ReadOnly,
		Format: w.cfg.Format, Takeover: started.Takeover, Rebind: w.cfg.Rebind, NoLocks: w.cfg.NoLocks}
	if !req.ReadOnly {
		req.Pending = w.table
	}
	open := w.p.Open
	if w.cfg.Remote != nil {
		open = w.openRemote
	}
	d, err := open(ctx, req)
	if err == nil && w.cfg.Scratch {
		d, err = overlay(d, w.p.Files.Scratch)
	}
	switch {
	case err != nil && !started.Poisoned:
		return fault.Wrap(err, "open disk %s", w.cfg.ID)
	case err != nil: // nothing of a poisoned disk is served but errors; they need no disk
		d = noDisk{}
	}
	w.disk = &guard{Disk: d, poison: w.poison, trouble: w.trouble}
	w.disk.poisoned.Store(started.Poisoned)
	return nil
}

// dir is the disk's directory through the seam, on a descriptor that the seam owns.
func (w *process) dir() (fsx.Dir, error) {
	defer w.p.Files.Dir.Close()
	fd, err := sys.Fd(w.p.Files.Dir)
	if err != nil {
		return nil, err
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	d, err := fsx.FromFD(own)
	if err != nil {
		_ = unix.Close(own)
	}
	return d, err
}

func (w *process) poison() {
	w.table.Poison() // before the request that met the failure is answered
	w.p.Log.Error("a sync failed: the disk is poisoned", "disk", w.cfg.ID)
	_ = w.ctl.send(evPoisoned, 0, nil, nil)
}

// trouble tells what the disk's user sees as an error, for those who look at the disk and not at the user's log.
func (w *process) trouble(err error) { _ = w.ctl.send(evTrouble, 0, nil, fault.From(err)) }

// serve answers the kernel and the supervisor until stop, or until serving fails.
func (w *process) serve(ctx context.Context, started ready) error {
	ctx, w.stop = context.WithCancelCause(ctx)
	defer w.stop(nil)
	w.server = w.p.NewServer(w.p.Files.Device, w.p.Log)
	params := export.Params{
		Name: w.cfg.ID, Disk: w.disk, ReadOnly: w.cfg.ReadOnly && !w.cfg.Scratch, State: w.table.State(), SaveState: w.table.SaveState,
		Takeover: started.Takeover,
		Ready: func() {
			// What the supervisor hears and what a successor finds must not be behind what the kernel sees.
			w.table.MarkServed()
			_ = w.ctl.send(evReady, 0, started, nil)
		},
	}
	served := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		err := w.server.Serve(ctx, params)
		if err == nil {
			_ = w.ctl.send(evGone, 0, nil, nil)
		} else if !errors.Is(err, errStop) {
			w.stop(err) // ends commands
		}
		served <- err
	})
	stopID, cerr := w.commands(ctx)
	w.stop(errStop)
	wg.Wait()
	err := <-served
	if errors.Is(err, errStop) {
		err = nil
	}
	if stopID == 0 { // serving failed, or the caller ended us: leave the disk as a killed worker would
		return errors.Join(err, cerr)
	}
	if !w.cfg.ReadOnly {
		err = errors.Join(err, w.disk.Flush())
	}
	err = errors.Join(err, w.disk.Close())
	_ = w.ctl.send(opStopped, stopID, nil, err)
	return nil
}

// commands serves the supervisor until it asks to stop (then its request's ID is returned) or ctx ends. A stop cancels the
// commands that run: a growth may take hours, and who wants it asks again. A supervisor that died changes nothing: the
// kernel kills us with it, and until then the disk is served.
func (w *process) commands(ctx context.Context) (stopID uint64, err error) {
	var wg sync.WaitGroup
	defer wg.Wait()
	running, cancel := context.WithCancelCause(ctx)
	defer cancel(errStop)
	w.ended = running.Done()
	unwatch := context.AfterFunc(ctx, func() { _ = w.ctl.c.SetReadDeadline(time.Now()) })
	defer unwatch()
	for {
		fr, err := w.ctl.receive()
		switch {
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case errors.Is(err, io.EOF):
			<-ctx.Done()
			return 0, context.Cause(ctx)
		case err != nil:
			return 0, err
		case fr.Op == opStop:
			return fr.ID, nil
		}
		if w.route(fr) {
			continue
		}
		do := func() (any, error) { return w.command(running, fr) }
		if fr.Op == opSnapshot || fr.Op == opMerge {
			c := w.begin(running, fr.ID)
			do = func() (any, error) { return c.run(fr) }
		}
		wg.Go(func() {
			body, err := do()
			if err != nil && errors.Is(context.Cause(running), errStop) {
				err = fault.New(fault.Unavailable, "try again when it is attached again", "disk %s is being stopped: %w", w.cfg.ID, err)
			}
			if serr := w.ctl.send(opAnswer, fr.ID, body, err); serr != nil {
				w.p.Log.Error("answer the supervisor", "request", fr.Op, "error", serr)
			}
		})
	}
}

func (w *process) command(ctx context.Context, fr frame) (any, error) {
	switch fr.Op {
	case opGrow:
		var b growBody
		if err := json.Unmarshal(fr.Body, &b); err != nil {
			return nil, err
		}
		if err := w.disk.Grow(ctx, b.Size); err != nil {
			return nil, err
		}
		return growBody{Size: w.disk.Size()}, w.server.Resized()
	case opFlush:
		return nil, w.disk.Flush()
	case opStats:
		s := Stats{Size: w.disk.Size(), Generation: w.table.Generation(), Pending: w.table.Len()}
		if c, ok := w.server.(counting); ok {
			s.Requests, s.Resent = c.Requests()
		}
		return s, nil
	case opMergeCost:
		return w.mergeCost(fr)
	case opRemote:
		return nil, w.remote.change(fr)
	}
	return nil, fault.New(fault.Unsupported, "hostd and its workers are of different versions: restart hostd",
		"a worker does not know %q", fr.Op)
}

// counting is a server that counts its requests.
type counting interface{ Requests() (all, resent uint64) }

// requests is how many the disk's user made so far of this worker.
func (w *process) requests() uint64 {
	if c, ok := w.server.(counting); ok {
		all, _ := c.Requests()
		return all
	}
	return 0
}

// noDisk stands for a poisoned disk that cannot even be opened.
type noDisk struct{}

func (noDisk) ReadAt([]byte, int64) (int, error)  { return 0, errPoisoned() }
func (noDisk) WriteAt([]byte, int64) (int, error) { return 0, errPoisoned() }
func (noDisk) Flush() error                       { return errPoisoned() }
func (noDisk) Discard(int64, int64) error         { return errPoisoned() }
func (noDisk) WriteZeroes(int64, int64) error     { return errPoisoned() }
func (noDisk) Size() int64                        { return 0 }
func (noDisk) Grow(context.Context, int64) error  { return errPoisoned() }
func (noDisk) Close() error                       { return errPoisoned() }
