package lun

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/kmutex"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// Inner is the host that keeps the disks of a store (host/local): it runs in this process and serves with Server.Serve.
type Inner interface {
	host.Host
	// Consolidate merges links that nobody needs until ctx ends.
	Consolidate(ctx context.Context)
	Close()
}

// InnerConfig is what an Inner is made with.
type InnerConfig struct {
	// Host owns the disks in their manifests: the store, whoever serves it, as its owner of now.
	Host      lease.Identity
	Datastore string
	Root      func() (fsx.Dir, error)
	Server    *Server // serves
}

// ServerConfig of NewServer.
type ServerConfig struct {
	Datastore string // its name
	LUN       fsx.File
	Inner     func(InnerConfig) (Inner, error)
	// LeaseOnly, Fencer, Key and IDs are for block maps (san.Config); so are Lease, MaxIO and Margin, 0: san's defaults.
	LeaseOnly            bool
	Fencer               san.Fencer
	Key                  func(node string) uint64
	IDs                  []string
	Lease, MaxIO, Margin time.Duration
	RecallTime           time.Duration // how long a change waits for maps; 0: 10 s
	Log                  *slog.Logger
}

// Server is the metadata server of one LUN: it has the store open, and in it every disk that a node has.
type Server struct {
	c        ServerConfig
	log      *slog.Logger
	store    *store.Store // nil: the disks are in a directory (Share)
	inner    Inner
	maps     *san.Server // set once, before anybody else knows the server
	sessions *sessions
	busy     kmutex.Set
	life     context.Context //nolint:containedctx // it is the life of what is served, not of a call
	end      context.CancelFunc

	mu   sync.Mutex
	open map[string]*Serving
}

var _ remote.Datastore = (*Server)(nil)

// NewServer opens the store on a LUN that this host owns, and takes over what its predecessor served:
//
//  1. The store: nobody else on this machine has it, and its identity says that it has a new owner.
//  2. Every disk that a node has is opened again, for that node (sessions).
//  3. The block maps that are out become this server's. Their disks are open, so that a change finds and recalls them.
//
// A crash between them leaves what the next owner begins with.
func NewServer(ctx context.Context, c ServerConfig) (*Server, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.RecallTime == 0 {
		c.RecallTime = recallTime
	}
	s := &Server{c: c, log: c.Log.With("datastore", c.Datastore), open: map[string]*Serving{}}
	var err error
	if s.store, err = store.Open(c.LUN, store.Options{}); err != nil {
		return nil, err
	}
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.Stop(false))
	}
	return s, nil
}

func (s *Server) start(ctx context.Context) (err error) {
	nonce := s.store.Nonce()
	if s.inner, err = s.c.Inner(InnerConfig{
		Host:      lease.Identity{Host: "lun-" + s.store.UUID().String(), BootID: store.UUID(nonce).String()},
		Datastore: s.c.Datastore, Root: func() (fsx.Dir, error) { return s.store.Root(), nil }, Server: s,
	}); err != nil {
		return err
	}
	if s.sessions, err = loadSessions(s.store.Root()); err != nil {
		return err
	}
	for _, id := range s.sessions.ids() {
		if err := s.attach(ctx, id); err != nil {
			s.log.Warn("a disk that a node has was not opened; it is tried again when the node asks", "disk", id, "error", err)
		}
	}
	s.maps = san.NewServer(ctx, san.Config{
		Store: s.store, Source: source{s}, Lease: s.c.Lease, MaxIO: s.c.MaxIO, Margin: s.c.Margin,
		Fencer: s.c.Fencer, LeaseOnly: s.c.LeaseOnly, Key: s.c.Key, LUN: san.LUN{IDs: s.c.IDs},
	})
	return nil
}

// tick is how often maps are looked over for nodes that are silent, and the store for a failure.
const tick = time.Second

// Run does what a server does by itself until ctx ends, or the store has failed: a new owner opens it anew.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.inner.Consolidate(ctx) })
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if err := s.maps.Expire(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("a node that is silent was not fenced; it is tried again", "error", err)
		}
		if err := s.store.Sync(); err != nil {
			return err
		}
	}
}

// Stop ends the server; Run has returned. The connections of nodes end first, so that none hears of an error. clean: the LUN
// is this host's still, and every disk is closed as its user would close it, but stays its node's.
func (s *Server) Stop(clean bool) error {
	s.end()
	s.mu.Lock()
	var all []*Serving
	for _, w := range s.open {
		all = append(all, w)
	}
	s.mu.Unlock()
	var errs []error
	for _, w := range all {
		if !clean {
			_ = w.Kill() // the LUN is another's: whatever this fails with, it writes nothing
			continue
		}
		w.end()
		errs = append(errs, w.chain.Close())
		w.dir.Close()
	}
	if s.inner != nil {
		s.inner.Close()
	}
	if s.store == nil {
		s.sessions.dir.Close()
		return errors.Join(errs...)
	}
	err := s.store.Close()
	if clean {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// lost makes of an error that the LUN, or the right to it, is lost one that a client comes again after: whoever serves next finds its disk
// where it is, and its node repeats what was not durable. All other errors are passed on.
func (s *Server) lost(err error) error {
	failed := s.store != nil && (errors.Is(err, fault.Fenced) || s.store.Failed() != nil) // a directory is nobody's to lose
	if err == nil || s.life.Err() == nil && !failed {
		return err
	}
	s.end()
	return fault.New(fault.Unavailable, "Try again: the LUN is opened anew, here or by another host.", "datastore %s: %v", s.c.Datastore, err)
}

// Maps implements remote.Datastore.
func (s *Server) Maps() *san.Server { return s.maps }

// Space implements remote.Datastore.
func (s *Server) Space(context.Context) (total, free int64, err error) { return s.store.Root().Space() }
