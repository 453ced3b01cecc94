package lun

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
)

// Lease is that this host owns a LUN (san/lunlease).
type Lease interface {
	// File is the LUN: it refuses what is written when the lease may be over.
	File() fsx.File
	// Lost is closed when it is.
	Lost() <-chan struct{}
	// Release lets the next host take the LUN at once.
	Release() error
}

// Fencing is how the owner of a LUN cuts a node off; the zero value: it cannot.
type Fencing struct {
	Fencer san.Fencer
	Key    func(node string) uint64
}

// OwnerConfig of NewOwner.
type OwnerConfig struct {
	// Server is what is served while the LUN is this host's; LUN, IDs, Fencer and Key are filled in.
	Server ServerConfig
	// Open opens the LUN past the page cache; ids name it for nodes.
	Open func(ctx context.Context) (lun fsx.File, ids []string, err error)
	// Acquire waits until this host owns the LUN, or ctx ends.
	Acquire func(ctx context.Context, lun fsx.File) (Lease, Fencing, error)
	Log     *slog.Logger
}

// Owner tries to be the metadata server of a LUN, and is it while it owns it.
type Owner struct {
	c   OwnerConfig
	log *slog.Logger

	mu     sync.Mutex
	server *Server
	why    error // why it is not served here, nil: another has it
}

// NewOwner makes an Owner; Run runs it.
func NewOwner(c OwnerConfig) *Owner {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Server.Log == nil {
		c.Server.Log = c.Log
	}
	return &Owner{c: c, log: c.Log.With("datastore", c.Server.Datastore)}
}

// retryTime is how long a LUN that could not be opened, or was lost, is left alone.
const retryTime = time.Second

// Run tries to own the LUN until ctx ends, and then gives it back.
func (o *Owner) Run(ctx context.Context) {
	said := ""
	for {
		err := o.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			o.log.Warn("the LUN is not served here; it is tried again", "error", err)
		}
		o.set(nil, err)
		t := time.NewTimer(retryTime)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// once owns the LUN once:
//
//  1. the lease                        dies: its time passes, and another host takes it
//  2. the store, and what was served   dies: as 1; a new owner does the same
//  3. serve, until ctx ends or the lease is lost or the store has failed
//  4. stop serving, then release: a host that takes the LUN finds everything written. Without the lease nothing is written.
func (o *Owner) once(ctx context.Context) (err error) {
	lun, ids, err := o.c.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lun.Close()) }()
	held, fencing, err := o.c.Acquire(ctx, lun)
	if err != nil {
		return err
	}
	c := o.c.Server
	c.LUN, c.IDs, c.Fencer, c.Key = held.File(), ids, fencing.Fencer, fencing.Key
	serving, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lost := fault.New(fault.Fenced, "", "the lease of the LUN is lost")
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() {
		select {
		case <-held.Lost():
			cancel(lost)
		case <-serving.Done():
		}
	})
	s, err := NewServer(serving, c)
	if err != nil {
		return errors.Join(err, held.Release())
	}
	o.set(s, nil)
	o.log.Info("serving the LUN", "uuid", s.store.UUID().String(), "disks", len(s.sessions.ids()))
	err = s.Run(serving)
	clean := err == nil && context.Cause(serving) != error(lost)
	o.set(nil, nil)
	if serr := s.Stop(clean); serr != nil {
		o.log.Warn("the LUN's disks were not closed cleanly; they are checked when they are opened", "error", serr)
	}
	if !clean && err == nil {
		return lost
	}
	o.log.Info("the LUN is given back", "error", err)
	return errors.Join(err, held.Release())
}

func (o *Owner) set(s *Server, why error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.server, o.why = s, why
}

// Server is the server while there is one here. Kind: Unavailable.
func (o *Owner) Server() (*Server, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.server != nil:
		return o.server, nil
	case o.why != nil:
		return nil, fault.New(fault.Unavailable, "Try again.", "datastore %s is not served here: %w", o.c.Server.Datastore, o.why)
	}
	return nil, fault.New(fault.Unavailable, "Try again.", "datastore %s is not served here: this host does not own its LUN", o.c.Server.Datastore)
}

// Lookup is Server for a remote.Server.
func (o *Owner) Lookup() (remote.Datastore, error) {
	s, err := o.Server()
	if err != nil {
		return nil, err // not a nil *Server in an interface
	}
	return s, nil
}
