package lun_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/leaktest"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/local"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/lun"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunlease"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
)

const mib = 1 << 20

func TestMain(m *testing.M) { leaktest.Main(m) }

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// eventually polls until f says true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// rig is a LUN and the machines that have it.
type rig struct {
	t        testing.TB
	path     string // of the LUN, or its URL
	ca       *authority
	expiry   time.Duration // of the LUN's lease; what a busy machine may keep its owner from it
	machines []*machine

	mu    sync.Mutex
	peers []string // also of machines that are dead
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, path: filepath.Join(t.TempDir(), "lun"), ca: newAuthority(t), expiry: 4 * time.Second}
	must(t, os.WriteFile(r.path, nil, 0o600), os.Truncate(r.path, 512*mib))
	f := r.open()
	_, err := store.Format(f, store.FormatOptions{ExtentSize: 256 << 10, AreaSize: 1 << 20})
	must(t, err, f.Close())
	return r
}

func (r *rig) open() fsx.File {
	r.t.Helper()
	f, _, err := lunpath.Open(r.t.Context(), r.path, lunpath.Options{ReadWrite: true, Blank: true})
	must(r.t, err)
	return f
}

// newRigAt is a rig on a target.
func newRigAt(t testing.TB, url string) *rig {
	t.Helper()
	r := &rig{t: t, path: url, ca: newAuthority(t), expiry: 4 * time.Second}
	f := r.open()
	_, err := store.Format(f, store.FormatOptions{ExtentSize: 256 << 10, AreaSize: 1 << 20})
	must(t, err, f.Close())
	return r
}

// machine is a host: what a hostd is, in this process.
type machine struct {
	*lun.Host
	r              *rig
	name           string
	dir            string
	base           *local.Host
	bus            hotadd.Bus
	workers        *workers
	owner          *lun.Owner
	tls            *tls.Config
	client         *remote.Client
	mute           func()
	dead, failSync atomic.Bool
	stop           context.CancelFunc // of the owner
	stopped        chan struct{}
	log            *slog.Logger
}

// start makes a machine whose hostd has not tried to own the LUN yet.
func (r *rig) start(name string) *machine {
	t := r.t
	t.Helper()
	m := &machine{r: r, name: name, dir: t.TempDir(), log: slog.New(slog.NewTextHandler(testLog{t}, nil)).With("node", name)}
	must(t, os.Mkdir(filepath.Join(m.dir, "a"), 0o755))
	m.workers = &workers{m: m}
	m.tls = r.ca.config(name)
	m.client = remote.NewClient(m.clientConfig())
	t.Cleanup(func() { m.workers.end(); m.client.Close() })
	m.owner = lun.NewOwner(m.ownerConfig())
	m.listen()
	t.Cleanup(func() { m.mute() })
	m.hostd()
	r.machines = append(r.machines, m)
	return m
}

// hostd makes the host, as a start of the program does.
func (m *machine) hostd() {
	t := m.r.t
	t.Helper()
	bus, err := hotadd.OpenEmulated(filepath.Join(m.dir, "bus.json"))
	must(t, err)
	m.base, err = local.New(local.Config{Host: lease.Identity{Host: m.name, BootID: "1"}, StateDir: m.dir, Log: m.log,
		Datastores: []local.DatastoreConfig{{Name: "a", Path: filepath.Join(m.dir, "a"), Scope: host.ScopeNode}},
		Transports: transport.New(transport.OfDirectory(bus)...), Workers: noWorkers{}})
	must(t, err)
	m.bus = bus
	m.Host, err = lun.New(lun.Config{Node: m.name, StateDir: m.dir, Base: m.base, Bus: bus, Workers: m.workers, Log: m.log,
		Datastores: []lun.Datastore{{Name: "lun", Client: m.client}},
		DeviceGone: func(*os.File, time.Duration) (bool, error) { return true, nil }})
	must(t, err)
	h, base := m.Host, m.base
	t.Cleanup(func() { h.Close(); base.Close() })
}

// ownerConfig has times for tests.
func (m *machine) ownerConfig() lun.OwnerConfig {
	p := lun.Path{Where: m.r.path, Me: lunlease.Me{Host: m.name}, Lease: lunlease.Options{Period: 100 * time.Millisecond, Expiry: m.r.expiry}, LeaseOnly: !lunpath.IsURL(m.r.path),
		MaxIO: 300 * time.Millisecond, Log: m.log}
	c := p.Owner(lun.OwnerConfig{Log: m.log,
		Server: lun.ServerConfig{Datastore: "lun", Inner: m.inner, Lease: 2 * time.Second, MaxIO: 300 * time.Millisecond, Margin: 100 * time.Millisecond}})
	if !p.LeaseOnly {
		return c
	}
	open := c.Open
	c.Open = func(ctx context.Context) (fsx.File, []string, error) {
		f, ids, err := open(ctx)
		return mortal{f, &m.dead, &m.failSync}, ids, err
	}
	return c
}

// serve makes the machine the owner of the LUN, and returns when it is.
func (m *machine) serve() {
	m.r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	m.stop, m.stopped = cancel, make(chan struct{})
	go func() { defer close(m.stopped); m.owner.Run(ctx) }()
	m.r.t.Cleanup(m.quit)
	eventually(m.r.t, m.name+" owns the LUN", func() bool { _, err := m.owner.Server(); return err == nil })
}

// serves are the disks that nodes have of this server.
func (m *machine) serves() (ids []string) {
	s, err := m.owner.Server()
	must(m.r.t, err)
	list, _, err := s.List(m.r.t.Context(), 0, "")
	must(m.r.t, err)
	for _, d := range list {
		if len(d.Attachments) > 0 {
			ids = append(ids, d.ID)
		}
	}
	return ids
}

// quit gives the LUN back.
func (m *machine) quit() {
	if m.stop != nil {
		m.stop()
		<-m.stopped
	}
}

func (m *machine) inner(c lun.InnerConfig) (lun.Inner, error) {
	dir := filepath.Join(m.dir, "inner")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return local.New(local.Config{Host: c.Host, StateDir: dir, Log: m.log, Workers: innerWorkers{c.Server}, Transports: lun.Deviceless(),
		Datastores:       []local.DatastoreConfig{{Name: c.Datastore, Root: c.Root, Scope: host.ScopeShared}},
		ConsolidateEvery: 100 * time.Millisecond,
		DeviceGone:       func(*os.File, time.Duration) (bool, error) { return true, nil }})
}

// innerWorkers are a Server as the inner host wants it.
type innerWorkers struct{ s *lun.Server }

func (w innerWorkers) Start(ctx context.Context, spec local.WorkerSpec, _ *os.File) (local.Worker, error) {
	d, err := w.s.Serve(ctx, lun.ServeSpec{ID: spec.ID, Links: spec.Links, ReadOnly: spec.ReadOnly, Format: spec.Format, NoLocks: spec.NoLocks})
	if err != nil {
		return nil, err
	}
	return served{d}, nil
}

type served struct{ *lun.Serving }

func (s served) State() local.WorkerState {
	return local.WorkerState{PID: os.Getpid(), Size: s.Size(), Requests: s.Requests(), Ended: s.Ended(), Poisoned: s.Poisoned()}
}

// noWorkers are the base's, of which nothing is attached here.
type noWorkers struct{}

func (noWorkers) Start(context.Context, local.WorkerSpec, *os.File) (local.Worker, error) {
	return nil, fault.New(fault.Unsupported, "", "no FUSE here")
}

// testLog writes to a test's log as long as it may.
type testLog struct{ t testing.TB }

var logMu sync.Mutex

func (l testLog) Write(p []byte) (int, error) {
	logMu.Lock()
	defer logMu.Unlock()
	if l.t.Context().Err() == nil {
		l.t.Logf("%s", p[:len(p)-1])
	}
	return len(p), nil
}

func kind(t testing.TB, err error, want fault.Kind, what string) {
	t.Helper()
	if fault.KindOf(err) != want {
		t.Fatalf("%s: %v, want %s", what, err, want)
	}
}
