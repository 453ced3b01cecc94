package vmdkctl

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/export"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/fuse"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/loop"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker/table"
)

// How long parts of an attach and a detach may take.
const (
	serveTime   = 2 * time.Minute // a disk that was not closed cleanly is checked first
	exportTime  = 30 * time.Second
	releaseTime = 10 * time.Second
	probeTime   = time.Second // how long a device may be open in somebody else's hands before that counts as use
	closeTime   = time.Minute
)

// KeepRequest is what attach tells the keeper on its standard input.
type keepRequest struct {
	ID        string   `json:"id"`
	Path      string   `json:"path"`      // directory of plain files
	Names     []string `json:"names"`     // descriptors of plain files, base first
	Datastore string   `json:"datastore"` // root, for a volume
	Volume    string   `json:"volume"`    // id, for a volume
	Name      string   `json:"name"`      // of the volume
	ReadOnly  bool     `json:"readOnly"`
}

// KeeperCommand is the process behind an attached disk: it holds the descriptors, supervises the worker and answers
// list and detach until the disk is detached.
func (a *app) keeperCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "keep",
		Short:  "Keep a disk attached (started by attach)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var r keepRequest
			if err := json.NewDecoder(os.Stdin).Decode(&r); err != nil {
				return fault.Wrap(err, "read the request of attach")
			}
			k := &keeper{req: r, dir: theRunDir(), log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
			err := k.attach(c.Context())
			// Whoever waits for the answer sees the end of it when this process lets go of its standard output.
			_ = json.NewEncoder(a.out).Encode(keepAnswer{Attachment: k.status(), Error: fault.From(err)})
			_ = os.Stdout.Close()
			if err != nil {
				return err
			}
			return k.run(c.Context())
		},
	}
}

// WorkerCommand is the process that serves one disk, child of a keeper.
func (a *app) workerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "disk ID",
		Short:  "Serve a disk (started by a keeper)",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, _ []string) error {
			return worker.Main(c.Context(), worker.Params{
				Files: worker.Inherited(),
				NewServer: func(dev *os.File, log *slog.Logger) export.Server {
					return fuse.NewServer(dev, fuse.Options{Log: log})
				},
				Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
			})
		},
	}
}

// Keeper is one attached disk. Its methods belong to the goroutine of run, but for status.
type keeper struct {
	req  keepRequest
	dir  runDir
	log  *slog.Logger
	disk *keptDisk

	lock    *os.File
	session *fuse.Session
	table   *os.File
	sup     *worker.Supervisor
	device  string // path of the block device; nothing holds it open, so that losetup -d works as everywhere
	listen  net.Listener
	jobs    jobs

	mu     sync.Mutex
	handle *worker.Handle
	att    attachment
}

// Attach makes the device. Steps:
//
//  1. take the lock that makes this the disk's only keeper   a death from here on gives everything back:
//  2. open the disk (of a volume: commit its next epoch)       the kernel drops locks, session and device; a volume
//     stays this host's and is acquired again
//  3. make the session and the table, start the worker
//  4. make the loop device over the session's file
//  5. listen, and write the state file
func (k *keeper) attach(ctx context.Context) (err error) {
	if k.lock, err = k.dir.claim(k.req.ID); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.undo())
		}
	}()
	if k.disk, err = openKept(ctx, k.req, k.log); err != nil {
		return err
	}
	if err := k.serve(ctx); err != nil {
		return err
	}
	if err := k.export(ctx); err != nil {
		return err
	}
	_ = os.Remove(k.dir.file(k.req.ID, ".sock")) // of a dead keeper; the lock is ours
	if k.listen, err = net.Listen("unix", k.dir.file(k.req.ID, ".sock")); err != nil {
		return err
	}
	k.mu.Lock()
	k.att = attachment{ID: k.req.ID, Device: k.device, Disk: k.disk.label, Volume: k.req.Volume, Datastore: k.req.Datastore,
		ReadOnly: k.req.ReadOnly, Since: time.Now().Truncate(time.Second), KeeperPID: os.Getpid()}
	k.mu.Unlock()
	return k.dir.save(k.status())
}

func (k *keeper) serve(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, serveTime)
	defer cancel()
	if k.session, err = fuse.NewSession(k.req.ID); err != nil {
		return err
	}
	if k.table, err = table.Create(); err != nil {
		return err
	}
	k.sup = worker.NewSupervisor(worker.Options{Log: k.log})
	h, err := k.sup.Start(ctx, worker.Spec{ID: k.req.ID, Dir: k.disk.dir, Links: k.disk.links, ReadOnly: k.req.ReadOnly,
		Format: k.disk.format, Device: worker.Device{Fuse: k.session.Dev, Table: k.table}})
	k.mu.Lock()
	k.handle = h
	k.mu.Unlock()
	return err
}

func (k *keeper) export(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, exportTime)
	defer cancel()
	flags := os.O_RDWR
	if k.req.ReadOnly {
		flags = os.O_RDONLY
	}
	f, err := k.session.OpenDisk(ctx, flags)
	if err != nil {
		return err
	}
	defer f.Close()
	// No autoclear: the device stays until detach, mounted or not.
	device, err := loop.Attach(f, loop.Options{DirectIO: true, ReadOnly: k.req.ReadOnly, PartScan: true})
	if err != nil {
		return err
	}
	k.device = device.Path()
	return errors.Join(device.Close(), k.session.CloseMount())
}

// Run answers until the disk is detached, or its device is gone because somebody cleared it (losetup -d).
func (k *keeper) run(ctx context.Context) error {
	// SIGTERM detaches; when the disk is in use it stays attached, so a later one must not end the process either.
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, unix.SIGTERM)
	defer signal.Stop(terminate)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGPIPE)
	if ctx.Err() != nil {
		terminate <- unix.SIGTERM
	}
	calls := make(chan net.Conn)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := k.listen.Accept()
			if err != nil {
				close(calls)
				return
			}
			calls <- c
		}
	})
	watch := time.NewTicker(200 * time.Millisecond)
	defer watch.Stop()
	for over := false; !over; {
		select {
		case c := <-calls:
			over = k.answer(c)
		case <-terminate:
			err := k.detach()
			if over = !errors.Is(err, fault.InUse); err != nil {
				k.log.Error("detach on SIGTERM", "error", err)
			}
		case <-watch.C:
			if s := k.handle.State(); s.Phase == worker.Gone || s.Phase == worker.Ended {
				k.log.Info("the device is gone", "phase", s.Phase, "error", s.LastErr)
				over = true
				if err := k.finish(); err != nil {
					k.log.Error("close the disk", "error", err)
				}
			}
		}
	}
	_ = k.listen.Close() // ends the accepting goroutine
	go func() {
		for c := range calls {
			_ = c.Close()
		}
	}()
	accepting.Wait()
	return nil
}

// Answer serves one call; over says that the disk is detached. What takes long goes on beside the others.
func (k *keeper) answer(c net.Conn) (over bool) {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	var call keepCall
	if err := json.NewDecoder(io.LimitReader(c, 1<<16)).Decode(&call); err != nil {
		_ = c.Close()
		return false
	}
	switch call.Op {
	case opSnapshot, opCreate, opConsolidate:
		_ = c.SetDeadline(time.Time{})
		k.jobs.start(func(ctx context.Context) {
			defer c.Close()
			k.work(ctx, c, call)
		})
		return false
	}
	defer c.Close()
	answer := keepAnswer{Attachment: k.status()}
	switch call.Op {
	case opStatus:
	case opDetach:
		err := k.detach()
		answer.Error = fault.From(err)
		over = !errors.Is(err, fault.InUse)
	default:
		answer.Error = fault.New(fault.Unsupported, "Detach with the vmdkctl that attached the disk.", "unknown call %q", call.Op)
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_ = json.NewEncoder(c).Encode(answer)
	return over
}

// Status is the attachment as it is now.
func (k *keeper) status() attachment {
	k.mu.Lock()
	defer k.mu.Unlock()
	a := k.att
	if k.handle != nil {
		s := k.handle.State()
		a.State, a.WorkerPID, a.Restarts, a.Size = string(s.Phase), s.PID, s.Restarts, s.Size
		if s.Poisoned {
			a.State = string(fault.Poisoned)
		}
	}
	return a
}

// Detach takes the device away and closes the disk. Kinds: InUse (the device is as it was), Poisoned (detached, but what
// was not flushed may be lost).
func (k *keeper) detach() error {
	if err := clearDevices(k.req.ID); err != nil {
		return err
	}
	return k.finish()
}

// Finish gives everything back, in the opposite order of attach.
func (k *keeper) finish() error {
	err := k.undo()
	k.dir.forget(k.req.ID)
	return err
}

func (k *keeper) undo() error {
	var errs []error
	if k.device != "" {
		errs = append(errs, clearDevices(k.req.ID))
	}
	k.jobs.stop()
	clean := true
	if k.handle != nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeTime)
		defer cancel()
		err := k.handle.Stop(ctx)
		clean = err == nil && !k.handle.State().Poisoned
		errs = append(errs, err)
	}
	if k.sup != nil {
		errs = append(errs, k.sup.Close())
	}
	if k.session != nil {
		errs = append(errs, k.session.Close())
	}
	if k.table != nil {
		errs = append(errs, k.table.Close())
	}
	if k.disk != nil {
		errs = append(errs, k.disk.close(clean))
	}
	if k.device == "" {
		k.dir.forget(k.req.ID)
	}
	return errors.Join(errs...)
}
