package nbd

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// ServerOptions say how a Server serves; the zero value serves unix sockets.
type ServerOptions struct {
	// TLS is offered on every connection; connections that come from no unix socket must use it. It is used as it is, but never
	// below TLS 1.3. nil: connections from elsewhere are refused.
	TLS *tls.Config
	Log *slog.Logger
	// MaxConnections at a time, default 256. Half of them may be without an export yet, so that who only knocks does not keep out
	// a client that reconnects for long, and never cuts one off.
	MaxConnections int
	// MaxBytes bounds the payload of all requests longer than 16 KiB together, default 1 GiB, at least 64 MiB. Short ones are bounded by
	// what a connection may have in flight of them.
	MaxBytes int64
	// Handshake is how long a peer may take until it has chosen an export, default 20 s.
	Handshake time.Duration
	// Stall is how long a peer may keep us waiting in the middle of a request or of a reply, default 60 s.
	Stall time.Duration
}

// Server serves the exports of a Resolver.
type Server struct {
	r        Resolver
	o        ServerOptions
	instance string
	budget   *budget // of calls longer than smallCall

	mu        sync.Mutex
	closed    bool
	listeners map[net.Listener]bool
	conns     map[*conn]bool
	greeting  int        // of these, those in their handshake
	ended     *sync.Cond // a connection has ended
	sessions  map[string]*fence
	wg        sync.WaitGroup
}

// NewServer makes a server; Close ends it.
func NewServer(r Resolver, o ServerOptions) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = 256
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 1 << 30
	}
	if o.Handshake == 0 {
		o.Handshake = 20 * time.Second
	}
	if o.Stall == 0 {
		o.Stall = time.Minute
	}
	if o.TLS != nil {
		o.TLS = o.TLS.Clone()
		o.TLS.MinVersion = max(o.TLS.MinVersion, tls.VersionTLS13)
	}
	s := &Server{r: r, o: o, instance: randomID(), budget: newBudget(max(o.MaxBytes, maxInFlight)), listeners: map[net.Listener]bool{}, conns: map[*conn]bool{}, sessions: map[string]*fence{}}
	s.ended = sync.NewCond(&s.mu)
	return s
}

// RandomID is 128 bits.
func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// Serve accepts connections until the server or the listener is closed, which may be before it began; it closes l.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		l.Close()
		return nil
	}
	s.listeners[l] = true
	s.mu.Unlock()
	defer func() {
		l.Close()
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	for {
		nc, err := l.Accept()
		if err == nil {
			s.start(newConn(s, nc))
			continue
		}
		if s.isClosed() || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) {
			s.o.Log.Warn("nbd: a connection was not accepted", "err", err)
			s.rest()
			continue
		}
		return err
	}
}

// Rest waits a moment, or for a connection to end: there are no descriptors.
func (s *Server) rest() {
	t := time.AfterFunc(100*time.Millisecond, s.ended.Broadcast)
	defer t.Stop()
	s.mu.Lock()
	s.ended.Wait()
	s.mu.Unlock()
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *Server) start(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.conns) >= s.o.MaxConnections || s.greeting >= max(1, s.o.MaxConnections/2) {
		if !s.closed {
			s.o.Log.Warn("nbd: refused: too many connections", "peer", c.peer.Address, "limit", s.o.MaxConnections)
		}
		c.raw.Close()
		return
	}
	s.conns[c] = true
	s.greeting++
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer s.forget(c)
		defer c.raw.Close()
		c.serve()
	}()
}

func (s *Server) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.leaveSession(c)
	s.ended.Broadcast()
}

// Greeted is called when the handshake of a connection is over.
func (s *Server) greeted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.greeting--
}

// Connections is how many there are.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Close accepts nothing more, answers what was received, and returns when every connection has ended. When ctx ends it waits
// for no peer any more, but still for the requests that run. Nothing is flushed: that is the business of who owns the device.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.finish()
	}
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, s.kill)
	defer stop()
	s.wg.Wait()
	return nil
}

// Kill ends all connections without an answer, as a death of the process does. Requests that run go on.
func (s *Server) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.raw.Close()
	}
}

// Fence is what is known of a client's session (doc.go, "Sessions").
type fence struct {
	epoch uint64
	conns map[*conn]uint64
}

// EnterSession makes c one of the session's connections of an epoch, and returns when no connection of an older epoch has a request
// that could still change the disk.
func (s *Server) enterSession(ctx context.Context, c *conn, id string, epoch uint64) error {
	stop := context.AfterFunc(ctx, s.ended.Broadcast)
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaveSession(c)
	f := s.sessions[id]
	if f == nil {
		f = &fence{conns: map[*conn]uint64{}}
		s.sessions[id] = f
	}
	if epoch < f.epoch {
		return fault.New(fault.Denied, "", "the session goes on elsewhere: it is in epoch %d, not %d", f.epoch, epoch)
	}
	f.epoch = epoch
	s.ended.Broadcast()
	f.conns[c] = epoch
	c.session = id
	for {
		older := 0
		for other, e := range f.conns {
			if e < f.epoch {
				other.raw.Close()
				older++
			}
		}
		switch {
		case f.epoch > epoch:
			return fault.New(fault.Denied, "", "the session goes on elsewhere")
		case older == 0:
			return nil
		case ctx.Err() != nil:
			return fault.New(fault.Timeout, "Try again.", "%d older connections of the session still have requests", older)
		}
		s.ended.Wait()
	}
}

// LeaveSession is called with mu held.
func (s *Server) leaveSession(c *conn) {
	if f := s.sessions[c.session]; f != nil {
		delete(f.conns, c)
		if len(f.conns) == 0 {
			delete(s.sessions, c.session)
		}
	}
	c.session = ""
}
