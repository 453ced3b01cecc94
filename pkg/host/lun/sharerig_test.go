package lun_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/local"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/lun"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
)

// village is hosts with directories that lend each other disks.
type village struct {
	t      testing.TB
	ca     *authority
	shared string // the directory that some of them see

	mu    sync.Mutex
	peers []string // also of those that are dead
}

func newVillage(t testing.TB) *village {
	return &village{t: t, ca: newAuthority(t), shared: t.TempDir()}
}

// neighbour is a host: what a hostd with directories is, in this process.
type neighbour struct {
	*lun.Host
	v      *village
	name   string
	dir    string
	stores []local.DatastoreConfig
	base   *local.Host
	shares map[string]*lun.Share
	own    map[string]*lun.Share // whose Serve is the workers of this node's own attachments
	tls    *tls.Config
	log    *slog.Logger
	mute   func()

	mu       sync.Mutex
	clients  map[string]*remote.Client
	disks    map[string]*worker      // by NBD
	attached map[string]*lun.Serving // here
}

// start makes a host with a directory "own" of its own and, unless it is hidden, the shared one as "shared".
func (v *village) start(name string, hidden bool) *neighbour {
	t := v.t
	t.Helper()
	n := &neighbour{v: v, name: name, dir: t.TempDir(), tls: v.ca.config(name), log: slog.New(slog.NewTextHandler(testLog{t}, nil)).With("node", name)}
	own, shared := filepath.Join(n.dir, "own"), v.shared
	if must(t, os.Mkdir(own, 0o755)); hidden {
		shared = filepath.Join(n.dir, "not-mounted")
	}
	n.stores = []local.DatastoreConfig{{Name: "own", Path: own, Scope: host.ScopeNode}, {Name: "shared", Path: shared, Scope: host.ScopeShared}}
	n.hostd()
	t.Cleanup(func() { n.quit(true) })
	return n
}

// hostd is a start of the program.
func (n *neighbour) hostd() {
	t := n.v.t
	t.Helper()
	bus, err := hotadd.OpenEmulated(filepath.Join(n.dir, "bus.json"))
	must(t, err)
	n.shares, n.own, n.clients = map[string]*lun.Share{}, map[string]*lun.Share{}, map[string]*remote.Client{}
	n.disks, n.attached = map[string]*worker{}, map[string]*lun.Serving{}
	n.base, err = local.New(local.Config{Host: lease.Identity{Host: n.name, BootID: "1"}, StateDir: n.dir, Log: n.log, Datastores: n.stores,
		Transports: transport.New(transport.OfDirectory(bus)...), Workers: homeWorkers{n}, ConsolidateEvery: 100 * time.Millisecond,
		DeviceGone: func(*os.File, time.Duration) (bool, error) { return true, nil }})
	must(t, err)
	var list []*lun.Share
	for _, d := range n.stores {
		n.shares[d.Name], err = lun.NewShare(lun.ShareConfig{Datastore: d.Name, StateDir: n.dir, Base: n.base, Log: n.log})
		must(t, err)
		n.own[d.Name], err = lun.NewShare(lun.ShareConfig{Datastore: d.Name, StateDir: t.TempDir(), Base: n.base, Log: n.log})
		must(t, err)
		list = append(list, n.shares[d.Name])
	}
	n.Host, err = lun.New(lun.Config{Node: n.name, StateDir: n.dir, Base: n.base, Bus: bus, Workers: awayWorkers{n}, Log: n.log, Shares: list,
		Elsewhere:  func(name string) lun.Client { return n.client(name) },
		DeviceGone: func(*os.File, time.Duration) (bool, error) { return true, nil }})
	must(t, err)
	n.listen()
	for _, s := range list {
		s.Reopen(t.Context())
	}
}

func (n *neighbour) config(datastore string) remote.ClientConfig {
	return remote.ClientConfig{Datastore: datastore, Node: n.name, TLS: n.tls, Log: n.log, Peers: func(context.Context) ([]string, error) {
		n.v.mu.Lock()
		defer n.v.mu.Unlock()
		return append([]string(nil), n.v.peers...), nil
	}}
}

func (n *neighbour) client(datastore string) *remote.Client {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.clients[datastore] == nil {
		n.clients[datastore] = remote.NewClient(n.config(datastore))
	}
	return n.clients[datastore]
}

func (n *neighbour) listen() {
	t := n.v.t
	t.Helper()
	control, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	blocks, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	n.v.mu.Lock()
	n.v.peers = append(n.v.peers, control.Addr().String())
	n.v.mu.Unlock()
	shares := n.shares
	s := remote.NewServer(remote.ServerConfig{TLS: n.tls, NBDAddress: blocks.Addr().String(), Log: n.log,
		Lookup: func(name string) (remote.Datastore, error) {
			if s := shares[name]; s != nil {
				return s, nil
			}
			return nil, fault.New(fault.NotFound, "", "no datastore %q", name)
		}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(ctx, control, blocks); err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	n.mute = func() { cancel(); <-done }
}

// quit ends the program, or kills it if it is not clean; hostd starts it again.
func (n *neighbour) quit(clean bool) {
	n.mute()
	if n.Host == nil {
		return
	}
	for _, w := range n.disks {
		_ = w.Close()
	}
	for _, list := range []map[string]*lun.Share{n.shares, n.own} {
		for _, s := range list {
			if err := s.Stop(clean); clean && err != nil {
				n.v.t.Errorf("stop: %v", err)
			}
		}
	}
	for _, c := range n.clients {
		c.Close()
	}
	n.Host.Close()
	n.base.Close()
	n.Host = nil
}

// homeWorkers are base's: what is lent and what is this node's own, all in this process.
type homeWorkers struct{ n *neighbour }

func (w homeWorkers) Start(ctx context.Context, spec local.WorkerSpec, _ *os.File) (local.Worker, error) {
	s := w.n.own[spec.Datastore]
	if spec.Lent {
		s = w.n.shares[spec.Datastore]
	}
	d, err := s.Serve(ctx, lun.ServeSpec{ID: spec.ID, Dir: spec.Dir, Links: spec.Links, ReadOnly: spec.ReadOnly, Format: spec.Format, NoLocks: spec.NoLocks})
	if err != nil {
		return nil, err
	}
	if !spec.Lent {
		w.n.mu.Lock()
		defer w.n.mu.Unlock()
		w.n.attached[spec.ID] = d
	}
	return served{d}, nil
}

// awayWorkers are those of disks of other hosts.
type awayWorkers struct{ n *neighbour }

func (w awayWorkers) Start(ctx context.Context, spec lun.WorkerSpec, _ *os.File) (lun.Worker, error) {
	d, err := remote.OpenDisk(ctx, remote.DiskConfig{ClientConfig: w.n.config(spec.Datastore), Volume: spec.ID, ReadOnly: spec.ReadOnly, Order: spec.Order,
		Patience: 10 * time.Second})
	if err != nil {
		return nil, err
	}
	one := &worker{Disk: d}
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	w.n.disks[spec.ID] = one
	return one, nil
}

// disk is an attached one.
func (n *neighbour) disk(id string) block.Device {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d := n.attached[id]; d != nil && !d.Ended() {
		return d.Device()
	}
	return n.disks[id]
}
