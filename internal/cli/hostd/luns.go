package hostd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/local"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/lun"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunlease"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
)

// LUN is a datastore on a LUN.
type LUN struct {
	Name, Where string
	LeaseOnly   bool // read-write maps also where no node can be cut off
	Credentials lunpath.Credentials
}

// Network is how hosts that share LUNs reach each other.
type Network struct {
	Control, NBD  string // addresses to listen at
	Advertise     string // host at which others reach this one
	Peers         []string
	CACert, CAKey string // PEM files
}

// luns is what this hostd has of its LUNs.
type luns struct {
	o     *Options
	log   *slog.Logger
	auth  *authority
	peers peers
	// client and owner of each datastore.
	clients map[string]*remote.Client
	owners  map[string]*lun.Owner

	shares map[string]*lun.Share // of the directories

	mu     sync.Mutex
	inners []*local.Host             // all there were: they have counted
	others map[string]*remote.Client // of directories, as other hosts have them
}

func newLUNs(o *Options) (*luns, error) {
	l := &luns{o: o, log: o.Log, clients: map[string]*remote.Client{}, owners: map[string]*lun.Owner{},
		shares: map[string]*lun.Share{}, others: map[string]*remote.Client{}}
	n := &o.Network
	_, port, err := net.SplitHostPort(n.Control)
	if err != nil {
		return nil, fault.New(fault.Invalid, "Write [HOST]:PORT.", "--listen-control=%s: %w", n.Control, err)
	}
	if _, _, err := net.SplitHostPort(n.NBD); err != nil {
		return nil, fault.New(fault.Invalid, "Write [HOST]:PORT.", "--listen-nbd=%s: %w", n.NBD, err)
	}
	if n.Advertise == "" {
		n.Advertise = "127.0.0.1"
	}
	own := net.JoinHostPort(n.Advertise, port)
	if l.peers, err = parsePeers(n.Peers, own); err != nil {
		return nil, err
	}
	if l.auth, err = loadAuthority(n.CACert, n.CAKey, o.Node); err != nil {
		return nil, err
	}
	for _, d := range o.LUNs {
		l.clients[d.Name] = remote.NewClient(remote.ClientConfig{
			Datastore: d.Name, Node: o.Node, Peers: l.peers.list, TLS: l.auth.config(), Log: o.Log})
		l.owners[d.Name] = lun.NewOwner(l.path(d, own).Owner(lun.OwnerConfig{
			Server: lun.ServerConfig{Datastore: d.Name, Inner: l.inner}, Log: o.Log}))
	}
	return l, nil
}

// path is how this host reaches a LUN; own is where others reach this host.
func (l *luns) path(d LUN, own string) lun.Path {
	return lun.Path{Where: d.Where, Credentials: d.credentials(l.o.Node), LeaseOnly: d.LeaseOnly, Me: lunlease.Me{Host: l.o.Node, Address: own}, Log: l.log}
}

// credentials are for iscsi://: a target tells hosts apart by their names.
func (d LUN) credentials(node string) lunpath.Credentials {
	c := d.Credentials
	if c.Initiator == "" {
		c.Initiator = initiators + strings.ToLower(node)
	}
	return c
}

const initiators = "iqn.2026-01.io.vmdk-csi:"

// datastores is what the host knows of the LUNs.
func (l *luns) datastores() []lun.Datastore {
	var list []lun.Datastore
	for _, d := range l.o.LUNs {
		list = append(list, lun.Datastore{Name: d.Name, Client: l.clients[d.Name], SAN: l.path(d, "").Look})
	}
	return list
}

// inner makes the host that keeps the disks of a LUN that this hostd owns.
func (l *luns) inner(c lun.InnerConfig) (lun.Inner, error) {
	dir := filepath.Join(l.o.StateDir, "lun-"+c.Datastore)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fault.Wrap(err, "make hostd's directory")
	}
	h, err := local.New(local.Config{
		Host: c.Host, StateDir: dir, Transports: lun.Deviceless(), Workers: innerWorkers{c.Server}, Log: l.log, ConsolidateRate: l.o.ConsolidateRate,
		Datastores: []local.DatastoreConfig{{Name: c.Datastore, Root: c.Root, Scope: host.ScopeShared}},
		DeviceGone: func(*os.File, time.Duration) (bool, error) { return true, nil }, // there is none
	})
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inners = append(l.inners, h)
	return h, nil
}

// lookup is remote.ServerConfig's.
func (l *luns) lookup(datastore string) (remote.Datastore, error) {
	if s := l.shares[datastore]; s != nil {
		return s, nil
	}
	o := l.owners[datastore]
	if o == nil {
		return nil, fault.New(fault.NotFound, "Give this host the datastore too, or ask another.", "host %q has no datastore %q", l.o.Node, datastore)
	}
	return o.Lookup()
}

// share makes the directories of base ready for other hosts.
func (l *luns) share(base *local.Host) ([]*lun.Share, error) {
	var list []*lun.Share
	for _, d := range l.o.Datastores {
		s, err := lun.NewShare(lun.ShareConfig{Datastore: d.Name, StateDir: l.o.StateDir, Base: base, Log: l.log})
		if err != nil {
			return nil, err
		}
		l.shares[d.Name] = s
		list = append(list, s)
	}
	return list, nil
}

// elsewhere is lun.Config's.
func (l *luns) elsewhere(datastore string) lun.Client {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.others[datastore]
	if c == nil {
		c = remote.NewClient(remote.ClientConfig{Datastore: datastore, Node: l.o.Node, Peers: l.peers.list, TLS: l.auth.config(), Log: l.log})
		l.others[datastore] = c
	}
	return c
}

// stop closes the disks that nodes have through this host: they stay theirs. run has returned, and nothing consolidates any more.
func (l *luns) stop() {
	for name, s := range l.shares {
		if err := s.Stop(true); err != nil {
			l.log.Warn("disks of other nodes were not closed cleanly; they are checked when they are opened", "datastore", name, "error", err)
		}
	}
}

// listenAgain is how often a port is tried that another process has: the predecessor, in the same network namespace.
const listenAgain = time.Second

func (l *luns) listen(ctx context.Context, address string) (net.Listener, error) {
	said := false
	for {
		n, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if !errors.Is(err, syscall.EADDRINUSE) {
			return n, fault.Wrap(err, "listen for other hosts")
		}
		if !said {
			l.log.Info("waiting for a port that another process has", "address", address)
			said = true
		}
		t := time.NewTimer(listenAgain)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		}
	}
}

// run serves other hosts, and tries to own the LUNs, until ctx ends. A host that does not listen owns nothing.
func (l *luns) run(ctx context.Context, w *remoteWorkers) error {
	defer func() {
		for _, c := range l.clients {
			c.Close()
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, c := range l.others {
			c.Close()
		}
	}()
	control, err := l.listen(ctx, l.o.Network.Control)
	if err != nil {
		return ignoreEnd(ctx, err)
	}
	blocks, err := l.listen(ctx, l.o.Network.NBD)
	if err != nil {
		control.Close()
		return ignoreEnd(ctx, err)
	}
	_, port, _ := net.SplitHostPort(l.o.Network.NBD) // newLUNs has seen it
	s := remote.NewServer(remote.ServerConfig{Lookup: l.lookup, TLS: l.auth.config(), NBDAddress: net.JoinHostPort(l.o.Network.Advertise, port), Log: l.log})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Serve(ctx, control, blocks) })
	for _, o := range l.owners {
		g.Go(func() error { o.Run(ctx); return nil })
	}
	for _, s := range l.shares {
		g.Go(func() error { s.Reopen(ctx); return nil }) // the predecessor listens no more
	}
	g.Go(func() error { w.refresh(ctx); return nil })
	return g.Wait()
}

func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// counters adds what the inner hosts have done.
func (l *luns) counters(sum local.Counters) local.Counters {
	if l == nil {
		return sum
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.inners {
		c := h.Counters()
		sum.Snapshots += c.Snapshots
		sum.SnapshotsDeleted += c.SnapshotsDeleted
		sum.Merges += c.Merges
		sum.Copied += c.Copied
		sum.Freed += c.Freed
	}
	return sum
}
