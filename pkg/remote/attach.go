package remote

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net"
	"strings"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/nbd"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
)

// key is a disk as one node uses it.
type key struct{ datastore, volume, node string }

// ticketVolume is the volume in a ticket's grant.
func (k key) ticketVolume() string { return k.datastore + "/" + k.volume }

// attached is what the server knows of a disk that a node uses.
type attached struct {
	key
	turn chan struct{} // holds one value while nobody opens, closes or maps the disk

	mu       sync.Mutex
	session  int64 // of the node's OpenDisk that has it
	seq      int64 // of its last request that said that it has no map
	served   *Served
	readOnly bool
	instance string
	life     context.Context //nolint:containedctx // of the connections to this opening of the disk
	end      context.CancelFunc
	mapping  bool          // a read-write map is being made: no connection may begin
	out      int           // exports that connections have
	idle     chan struct{} // closed and replaced when out becomes 0
}

// take finds or makes the entry of a disk and waits for the turn on it.
func (s *Server) take(ctx context.Context, k key) (*attached, func(), error) {
	for {
		s.mu.Lock()
		a := s.attached[k]
		if a == nil {
			a = &attached{key: k, turn: make(chan struct{}, 1), idle: make(chan struct{})}
			a.turn <- struct{}{}
			s.attached[k] = a
		}
		s.mu.Unlock()
		select {
		case <-a.turn:
		case <-ctx.Done():
			return nil, nil, fault.New(fault.InProgress, "Try again.", "disk %s is being opened or closed: %w", k.volume, ctx.Err())
		}
		done := func() { a.turn <- struct{}{} }
		s.mu.Lock()
		current := s.attached[k] == a
		s.mu.Unlock()
		if current {
			return a, done, nil
		}
		done() // it was closed while we waited
	}
}

// enter checks the session of a request and makes it the current one. Called with the turn.
func (s *Server) enter(ctx context.Context, a *attached, c *diskBody, maps *san.Server) error {
	a.mu.Lock()
	last, seq := a.session, a.seq
	a.mu.Unlock()
	if c.Session != 0 && c.Session < last {
		return fault.New(fault.Fenced, "End this process: the node has opened the disk anew.", "disk %s goes on in a later session of node %s", a.volume, a.node)
	}
	if c.Fresh && c.Session > last {
		if err := s.forgetNode(ctx, a, maps); err != nil {
			return err
		}
	}
	if c.Session > last {
		seq = 0
	}
	if c.Mapless {
		if c.Seq <= seq {
			return fault.New(fault.InProgress, "Try again.", "a later request of the session for disk %s is answered already", a.volume)
		}
		seq = c.Seq
		if mapOut(maps, a.key, false) {
			if err := maps.Abandon(ctx, a.volume, a.node, 0, 0); err != nil {
				return err
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.session, a.seq = max(a.session, c.Session), seq
	return nil
}

// forgetNode ends what a node had of a disk in a session that is over: its connections, and maps that it did not return. Called with
// the turn.
func (s *Server) forgetNode(ctx context.Context, a *attached, maps *san.Server) error {
	if err := s.disconnect(ctx, a); err != nil {
		return err
	}
	if maps == nil {
		return nil
	}
	return maps.Abandon(ctx, a.volume, a.node, 0, 0)
}

// disconnect revokes the node's tickets and waits until no connection has a request any more.
func (s *Server) disconnect(ctx context.Context, a *attached) error {
	s.tickets.RevokeNode(a.ticketVolume(), a.node)
	for {
		a.mu.Lock()
		out, idle := a.out, a.idle
		a.mu.Unlock()
		if out == 0 {
			return nil
		}
		select {
		case <-idle:
		case <-ctx.Done():
			return fault.New(fault.InProgress, "Try again.", "%d connections to disk %s still have requests: %w", out, a.volume, ctx.Err())
		}
	}
}

// ensure has the disk open. Called with the turn.
func (s *Server) ensure(ctx context.Context, a *attached, store Datastore, readOnly bool) (*Served, error) {
	if maps := store.Maps(); maps != nil {
		for _, o := range maps.Outstanding() {
			if o.Volume == a.volume && o.Snapshot == "" && o.Node != a.node && (o.Mode == san.ReadWrite || !readOnly) {
				return nil, fault.New(fault.InUse, "Detach it there first.", "disk %s has a block map (%s) on node %s", a.volume, o.Mode, o.Node)
			}
		}
	}
	served, err := store.Open(ctx, a.volume, a.node, readOnly)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.served != nil && a.served.Export.Device != served.Export.Device {
		a.forget()
	}
	if a.life == nil || a.life.Err() != nil {
		a.instance = randomID()
		outer := served.Export.Revoked
		if outer == nil {
			outer = context.Background()
		}
		a.life, a.end = context.WithCancel(outer)
	}
	a.served, a.readOnly = &served, readOnly
	return &served, nil
}

// forget ends the connections of an opening. Called with mu held.
func (a *attached) forget() {
	if a.end != nil {
		a.end()
	}
	a.served = nil
}

func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// open is /v1/open: the disk is open for the node, and here is a ticket.
func (s *Server) open(ctx context.Context, c call[diskBody]) (any, error) {
	a, done, err := s.takeFor(ctx, c.store, c.body)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := s.enter(ctx, a, c.body, c.store.Maps()); err != nil {
		return nil, err
	}
	served, err := s.ensure(ctx, a, c.store, c.body.ReadOnly)
	if err != nil {
		return nil, err
	}
	r := openedBody{Opened: Opened{served.Disk, served.Epoch}, Size: served.Export.Device.Size()}
	if c.body.Session == 0 {
		return r, nil
	}
	k, err := s.tickets.Issue(nbd.Grant{Volume: a.ticketVolume(), Node: a.node, Fingerprint: c.fp, Write: !c.body.ReadOnly})
	if err != nil {
		return nil, err
	}
	r.Ticket, r.Address = k.Name(), s.nbdAddress(c.host)
	return r, nil
}

func (s *Server) nbdAddress(reached string) string {
	if !strings.HasPrefix(s.c.NBDAddress, ":") {
		return s.c.NBDAddress
	}
	at, _, err := net.SplitHostPort(reached)
	if err != nil {
		return s.c.NBDAddress
	}
	return net.JoinHostPort(at, s.c.NBDAddress[1:])
}

// resolve opens what a ticket is for, to one connection.
func (s *Server) resolve(_ context.Context, g nbd.Grant) (*nbd.Export, error) {
	datastore, volume, _ := strings.Cut(g.Volume, "/")
	store, err := s.c.Lookup(datastore)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	a := s.attached[key{datastore, volume, g.Node}]
	s.mu.Unlock()
	if a == nil {
		return nil, fault.New(fault.Unavailable, "Open it anew.", "disk %s is not open", volume)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.served == nil || a.life.Err() != nil {
		return nil, fault.New(fault.Unavailable, "Open it anew.", "disk %s is not open", volume)
	}
	if a.mapping || !a.readOnly && mapOut(store.Maps(), a.key, true) {
		return nil, fault.New(fault.InProgress, "Return the map first.", "disk %s has a block map on node %s", volume, g.Node)
	}
	e := a.served.Export
	e.Device = &watched{e.Device, a.end}
	e.Instance, e.Revoked = a.instance, a.life
	inner := e.Close
	e.Close = func() {
		if inner != nil {
			inner()
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.out--; a.out == 0 {
			close(a.idle)
			a.idle = make(chan struct{})
		}
	}
	a.out++
	return &e, nil
}

// mapOut says whether the node has a map of the disk, or one that it may write by.
func mapOut(maps *san.Server, k key, writing bool) bool {
	if maps == nil {
		return false
	}
	for _, o := range maps.Outstanding() {
		if o.Volume == k.volume && o.Node == k.node && (!writing || o.Mode == san.ReadWrite) {
			return true
		}
	}
	return false
}

// close is /v1/close.
func (s *Server) close(ctx context.Context, c call[idBody]) (none, error) {
	k := key{c.body.Datastore, c.body.ID, c.body.Node}
	a, done, err := s.take(ctx, k)
	if err != nil {
		return none{}, err
	}
	defer done()
	if err := s.forgetNode(ctx, a, c.store.Maps()); err != nil {
		return none{}, err
	}
	a.mu.Lock()
	a.forget()
	a.mu.Unlock()
	if err := c.store.Close(ctx, k.volume, k.node); err != nil {
		return none{}, err
	}
	s.mu.Lock()
	delete(s.attached, k)
	s.mu.Unlock()
	return none{}, nil
}

// watched ends an opening whose owner has lost it, before a client hears of that: nothing is answered on a connection that is revoked.
type watched struct {
	block.Device
	end context.CancelFunc
}

func (w *watched) note(err error) error {
	if errors.Is(err, fault.Fenced) || errors.Is(err, fault.Unavailable) {
		w.end()
	}
	return err
}

func (w *watched) ReadAt(p []byte, off int64) (int, error) {
	n, err := w.Device.ReadAt(p, off)
	return n, w.note(err)
}

func (w *watched) WriteAt(p []byte, off int64) (int, error) {
	n, err := w.Device.WriteAt(p, off)
	return n, w.note(err)
}

func (w *watched) Flush() error                   { return w.note(w.Device.Flush()) }
func (w *watched) Discard(off, n int64) error     { return w.note(w.Device.Discard(off, n)) }
func (w *watched) WriteZeroes(off, n int64) error { return w.note(w.Device.WriteZeroes(off, n)) }
