package remote

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/nbd"
)

// ServerConfig is what a Server is made of.
type ServerConfig struct {
	// Lookup finds a datastore that this host serves. Kinds: Unavailable (it does not; the text says who does, if that is known).
	Lookup func(datastore string) (Datastore, error)
	// TLS must ask for clients' certificates and verify them; their common name is the node.
	TLS *tls.Config
	// NBDAddress is told to clients; with a port only (":10809") it is at the host where they reached control.
	NBDAddress string
	Log        *slog.Logger
}

// Server is the end of control and NBD that has the disks.
type Server struct {
	c       ServerConfig
	tickets *nbd.Tickets
	mux     *http.ServeMux
	calls   calls

	mu       sync.Mutex
	attached map[key]*attached
}

// calls are the handlers that run.
type calls struct {
	mu      sync.Mutex
	running int
	none    chan struct{} // not nil: no further call begins; closed when none runs
}

func (c *calls) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.none != nil {
		return false
	}
	c.running++
	return true
}

func (c *calls) done() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running--; c.running == 0 && c.none != nil {
		close(c.none)
	}
}

// end lets no call begin any more; what it returns is closed when none runs. Called once.
func (c *calls) end() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.none = make(chan struct{})
	if c.running == 0 {
		close(c.none)
	}
	return c.none
}

// NewServer makes a server; Serve runs it, once.
func NewServer(c ServerConfig) *Server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{c: c, mux: http.NewServeMux(), attached: map[key]*attached{}}
	s.tickets = nbd.NewTickets(s.resolve, nbd.TicketOptions{})
	s.routes()
	return s
}

// shutdownTime is how long calls that are under way may still take when the server ends.
const shutdownTime = 5 * time.Second

// maxConnections of NBD: four for a disk, of a thousand disks.
const maxConnections = 4096

// Serve answers until ctx ends; all connections are closed and no request runs any more when it returns. Disks that are open stay so:
// the Datastore is the caller's to close. It takes the listeners over.
func (s *Server) Serve(ctx context.Context, control, nbdListener net.Listener) error {
	config := s.c.TLS.Clone()
	config.MinVersion, config.NextProtos = tls.VersionTLS13, []string{"http/1.1"}
	web := &http.Server{Handler: s.mux, ReadHeaderTimeout: 20 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx }, ErrorLog: slog.NewLogLogger(s.c.Log.Handler(), slog.LevelDebug)}
	blocks := nbd.NewServer(s.tickets, nbd.ServerOptions{TLS: s.c.TLS, Log: s.c.Log, MaxConnections: maxConnections})
	ended := make(chan error, 2)
	go func() { ended <- web.Serve(tls.NewListener(control, config)) }()
	go func() { ended <- blocks.Serve(nbdListener) }()
	var err error
	left := 2
	select {
	case <-ctx.Done():
	case err = <-ended:
		left--
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	err = errors.Join(err, blocks.Close(over)) // kills: clients come again and find the successor
	_ = web.Shutdown(over)                     // closes the listener, and what is idle
	ran := s.calls.end()
	slow := time.NewTimer(shutdownTime)
	defer slow.Stop()
	select {
	case <-ran:
	case <-slow.C:
	}
	_ = web.Close() // also what a client has dialled and not used: Shutdown waits for that
	for range left {
		err = errors.Join(err, <-ended)
	}
	<-ran
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// request is what every body is.
type request[B any] interface {
	*B
	common() *head
}

// call is a request that was understood, and came from whom it says.
type call[B any] struct {
	body  *B
	store Datastore
	fp    string // of the peer's certificate
	host  string // at which the peer reached us
}

// answer makes a handler: it reads the body, checks who sends it, finds the datastore, and writes what do returns.
func answer[B any, R any, P request[B]](s *Server, path string, do func(ctx context.Context, c call[B]) (R, error)) {
	s.mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		if !s.calls.begin() {
			panic(http.ErrAbortHandler) // the connection breaks, and the client looks elsewhere
		}
		defer s.calls.done()
		var result any
		c, status, err := understand[B, P](s, r)
		if err == nil {
			result, err = do(r.Context(), c)
		}
		if err != nil {
			s.c.Log.Debug("remote: refused", "path", path, "peer", r.RemoteAddr, "err", err)
			result = failure{fault.From(err)}
		}
		if err != nil && status == http.StatusOK {
			status = statusFault
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if err := json.NewEncoder(w).Encode(result); err != nil {
			s.c.Log.Debug("remote: the peer left", "path", path, "peer", r.RemoteAddr, "err", err)
		}
	})
}

func understand[B any, P request[B]](s *Server, r *http.Request) (c call[B], status int, err error) {
	c.body = new(B)
	b, err := io.ReadAll(io.LimitReader(r.Body, maxRequest+1))
	if err == nil && len(b) > maxRequest {
		err = errors.New("it is too long")
	}
	if err == nil {
		err = json.Unmarshal(b, c.body)
	}
	if err != nil {
		return c, http.StatusOK, fault.New(fault.Invalid, "", "read the request: %w", err)
	}
	h := P(c.body).common()
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || len(r.TLS.PeerCertificates) == 0 {
		return c, http.StatusOK, fault.New(fault.Denied, "Use a certificate of this cluster's authority.", "the request came without a certificate")
	}
	cert := r.TLS.PeerCertificates[0]
	if cert.Subject.CommonName != h.Node || h.Node == "" {
		return c, http.StatusOK, fault.New(fault.Denied, "Use the certificate of the node that asks.", "the certificate of %q asks for node %q", cert.Subject.CommonName, h.Node)
	}
	c.fp = nbd.Fingerprint(cert)
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		c.host = a.String()
	}
	if c.store, err = s.c.Lookup(h.Datastore); err != nil {
		return c, statusElsewhere, err
	}
	return c, http.StatusOK, nil
}

// routes are the calls that the Datastore answers by itself; those of attached disks are beside them in attach.go.
func (s *Server) routes() {
	answer(s, pathServes, func(ctx context.Context, c call[servesBody]) (a servesAnswer, _ error) {
		var store Spread
		if store, a.Spread = c.store.(Spread); a.Spread {
			holds, err := store.Holds(ctx, c.body.ID, c.body.Node)
			a.Holds, a.Missing = holds, fault.From(err)
		}
		return a, nil
	})
	answer(s, pathCreate, func(ctx context.Context, c call[createBody]) (any, error) { return c.store.Create(ctx, c.body.Spec) })
	answer(s, pathDelete, func(ctx context.Context, c call[idBody]) (none, error) { return none{}, c.store.Delete(ctx, c.body.ID) })
	answer(s, pathGet, func(ctx context.Context, c call[idBody]) (any, error) { return c.store.Get(ctx, c.body.ID) })
	answer(s, pathList, func(ctx context.Context, c call[listBody]) (any, error) {
		list, next, err := c.store.List(ctx, c.body.Max, c.body.Token)
		return disksBody{list, next}, err
	})
	answer(s, pathExpand, func(ctx context.Context, c call[expandBody]) (any, error) {
		return c.store.Expand(ctx, c.body.ID, c.body.Size)
	})
	answer(s, pathCreateSnapshot, func(ctx context.Context, c call[snapshotBody]) (any, error) {
		return c.store.CreateSnapshot(ctx, c.body.Spec)
	})
	answer(s, pathDeleteSnapshot, func(ctx context.Context, c call[idBody]) (none, error) {
		return none{}, c.store.DeleteSnapshot(ctx, c.body.ID)
	})
	answer(s, pathGetSnapshot, func(ctx context.Context, c call[idBody]) (any, error) { return c.store.GetSnapshot(ctx, c.body.ID) })
	answer(s, pathListSnapshots, func(ctx context.Context, c call[listBody]) (any, error) {
		list, next, err := c.store.ListSnapshots(ctx, c.body.Disk, c.body.Max, c.body.Token)
		return snapshotsBody{list, next}, err
	})
	answer(s, pathSpace, func(ctx context.Context, c call[emptyBody]) (any, error) {
		total, free, err := c.store.Space(ctx)
		return spaceBody{total, free}, err
	})
	answer(s, pathOpen, s.open)
	answer(s, pathClose, s.close)
	answer(s, pathEvict, s.evict)
	answer(s, pathMap, s.mapped)
	answer(s, pathRenew, s.renew)
	answer(s, pathReturn, s.giveBack)
	answer(s, pathRecall, s.recalled)
}
