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
	"github.com/vmdk-csi/vmdk-csi/pkg/host/lun"
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
	LUNs             []LUN
	Network          Network // of hosts that share LUNs
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
	b, err := build(&o, m)
	if err != nil {
		return err
	}
	defer b.close(o.Log)
	var ready atomic.Bool
	g, ctx := errgroup.WithContext(ctx)
	if o.Health != "" {
		g.Go(func() error { return serveHealth(ctx, o.Health, b, m, &ready) })
	}
	g.Go(func() error { watchDatastores(ctx, b.host); return nil })
	if b.luns != nil {
		g.Go(func() error { return b.luns.run(ctx, b.remote) })
	}
	g.Go(func() error {
		if err := takeOver(ctx, o, b.host); err != nil {
			return err
		}
		l, err := listen(o.Socket)
		if err != nil {
			return err
		}
		ready.Store(true)
		g.Go(func() error { b.base.Consolidate(ctx); return nil })
		o.Log.Info("serving", "node", o.Node, "socket", o.Socket)
		return wire.Serve(ctx, l, b.host, wire.Options{UIDs: o.UIDs, Log: o.Log})
	})
	return g.Wait()
}

// adopting is a host that takes disks over from a predecessor.
type adopting interface {
	host.Host
	Adopt(ctx context.Context, held host.Held) error
}

// built is what a hostd is made of.
type built struct {
	host   adopting    // what is served: base, or one that has LUNs beside it
	base   *local.Host // of the directories
	sup    *worker.Supervisor
	luns   *luns          // nil without LUNs and other hosts
	remote *remoteWorkers // as luns
}

func (b *built) close(log *slog.Logger) {
	if err := b.sup.Close(); err != nil {
		log.Error("end the workers", "error", err)
	}
	if b.luns != nil {
		b.luns.stop()
	}
	if h, ok := b.host.(*lun.Host); ok {
		h.Close()
	}
	b.base.Close()
}

// build makes the host and the supervisor of its workers.
func build(o *Options, m *metrics) (*built, error) {
	if o.Node == "" {
		return nil, fault.New(fault.Invalid, "Set --node-name.", "the node has no name")
	}
	if o.StateDir == "" {
		o.StateDir = o.RunDir
	}
	for _, dir := range []string{o.RunDir, o.StateDir, filepath.Dir(o.Socket)} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, fault.Wrap(err, "make hostd's directory")
		}
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fault.Wrap(err, "read the boot id")
	}
	bus, err := hotadd.OpenEmulated(filepath.Join(o.RunDir, "bus.json"))
	if err != nil {
		return nil, err
	}
	b := &built{}
	if len(o.LUNs) > 0 || o.Network.CACert != "" {
		if b.luns, err = newLUNs(o); err != nil {
			return nil, err
		}
	}
	b.sup = worker.NewSupervisor(worker.Options{Command: o.WorkerCommand, Log: o.Log, Paused: m.paused})
	b.base, err = local.New(local.Config{
		Host:     lease.Identity{Host: o.Node, BootID: string(bytes.TrimSpace(boot))},
		StateDir: o.StateDir, Datastores: o.Datastores,
		Transports: transport.New(transport.OfDirectory(bus)...),
		Workers:    router{workers{b.sup}, b.luns}, Log: o.Log, ConsolidateRate: o.ConsolidateRate, OpenRoot: o.OpenRoot,
	})
	if err != nil {
		return nil, errors.Join(err, b.sup.Close())
	}
	b.host = b.base
	if b.luns == nil {
		return b, nil
	}
	b.remote = &remoteWorkers{s: b.sup, l: b.luns}
	shares, err := b.luns.share(b.base)
	if err != nil {
		b.base.Close()
		return nil, errors.Join(err, b.sup.Close())
	}
	h, err := lun.New(lun.Config{Node: o.Node, StateDir: o.StateDir, Base: b.base, Datastores: b.luns.datastores(), Workers: b.remote, Bus: bus,
		Shares: shares, Elsewhere: b.luns.elsewhere, DeviceGone: local.FuseGone, Log: o.Log})
	if err != nil {
		b.base.Close()
		return nil, errors.Join(err, b.sup.Close())
	}
	b.host = h
	return b, nil
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
func takeOver(ctx context.Context, o Options, h adopting) error {
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
