package hostd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/local"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/wire"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
)

// Options of Run.
type Options struct {
	Node             string
	Socket           string
	RunDir, StateDir string
	Datastores       []local.DatastoreConfig
	TakeOverFrom     string
	Health           string
	UIDs             []int
	WorkerCommand    []string
	ConsolidateRate  int64 // bytes per second; 0: host/local's default
	// OpenRoot opens the directory of a datastore; nil: fsx.OpenRoot.
	OpenRoot func(path string) (fsx.Dir, error)
	Log      *slog.Logger
}

// takeOverTime bounds the take-over of all disks from a predecessor: one takes tens of milliseconds, a datastore that
// answers slowly seconds.
const takeOverTime = 5 * time.Minute

// Run serves until ctx ends.
func Run(ctx context.Context, o Options) error {
	m := newMetrics()
	h, sup, err := build(&o, m)
	if err != nil {
		return err
	}
	defer h.Close()
	defer func() {
		if err := sup.Close(); err != nil {
			o.Log.Error("end the workers", "error", err)
		}
	}()
	var ready atomic.Bool
	g, ctx := errgroup.WithContext(ctx)
	if o.Health != "" {
		g.Go(func() error { return serveHealth(ctx, o.Health, h, m, &ready) })
	}
	g.Go(func() error { watchDatastores(ctx, h); return nil })
	g.Go(func() error {
		if err := takeOver(ctx, o, h); err != nil {
			return err
		}
		l, err := listen(o.Socket)
		if err != nil {
			return err
		}
		ready.Store(true)
		g.Go(func() error { h.Consolidate(ctx); return nil })
		o.Log.Info("serving", "node", o.Node, "socket", o.Socket)
		return wire.Serve(ctx, l, h, wire.Options{UIDs: o.UIDs, Log: o.Log})
	})
	return g.Wait()
}

// build makes the host and the supervisor of its workers.
func build(o *Options, m *metrics) (*local.Host, *worker.Supervisor, error) {
	if o.Node == "" {
		return nil, nil, fault.New(fault.Invalid, "Set --node-name.", "the node has no name")
	}
	if o.StateDir == "" {
		o.StateDir = o.RunDir
	}
	for _, dir := range []string{o.RunDir, o.StateDir, filepath.Dir(o.Socket)} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, nil, fault.Wrap(err, "make hostd's directory")
		}
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, nil, fault.Wrap(err, "read the boot id")
	}
	bus, err := hotadd.OpenEmulated(filepath.Join(o.RunDir, "bus.json"))
	if err != nil {
		return nil, nil, err
	}
	sup := worker.NewSupervisor(worker.Options{Command: o.WorkerCommand, Log: o.Log, Paused: m.paused})
	h, err := local.New(local.Config{
		Host:     lease.Identity{Host: o.Node, BootID: string(bytes.TrimSpace(boot))},
		StateDir: o.StateDir, Datastores: o.Datastores,
		Transports: transport.New(transport.OfDirectory(bus)...),
		Workers:    workers{sup}, Log: o.Log, ConsolidateRate: o.ConsolidateRate, OpenRoot: o.OpenRoot,
	})
	if err != nil {
		return nil, nil, errors.Join(err, sup.Close())
	}
	return h, sup, nil
}

// watchDatastores tries datastores that are not ready again, and notices those that go away.
func watchDatastores(ctx context.Context, h host.Datastores) {
	t := time.NewTicker(10 * time.Second)
	defer t.Stop()
	for {
		_, _ = h.Datastores(ctx) // a change is logged where it is noticed, and served to who asks
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// takeOver takes every disk from the hostd that serves now, if there is one: each is served here before the next one is
// asked for. If it breaks off, hostd ends and is started again: the predecessor serves on what it still has, and the
// node service brings it back what was taken.
func takeOver(ctx context.Context, o Options, h *local.Host) error {
	from := o.TakeOverFrom
	if from == "" {
		from = o.Socket
	}
	ctx, cancel := context.WithTimeout(ctx, takeOverTime)
	defer cancel()
	c, err := wire.Dial(ctx, from)
	if errors.Is(err, fault.Unavailable) && o.TakeOverFrom == "" {
		return nil // nobody is there, or the socket of a dead one
	}
	if err != nil {
		return fault.Wrap(err, "take over from the hostd at %s", from)
	}
	defer c.Close()
	n := 0
	err = c.Handover(ctx, func(held host.Held) error {
		defer held.Close()
		n++
		return h.Adopt(ctx, held)
	})
	if err != nil {
		return fault.Wrap(err, "take over from the hostd at %s", from)
	}
	o.Log.Info("took over", "from", from, "disks", n)
	return nil
}

// listen makes the socket under another name and moves it over the predecessor's: clients find one or the other.
func listen(path string) (*net.UnixListener, error) {
	temp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(err, "make hostd's socket")
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fault.Wrap(err, "make hostd's socket")
	}
	// The name is a successor's when this process ends.
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(temp, 0o660); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return nil, fault.Wrap(errors.Join(err, l.Close(), os.Remove(temp)), "make hostd's socket")
	}
	return l, nil
}
