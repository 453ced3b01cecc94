package remote

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// ClientConfig says which datastore a Client uses, and who it is.
type ClientConfig struct {
	Datastore, Node string
	// Peers are host:port of every host that may serve the datastore; asked anew when none does.
	Peers func(ctx context.Context) ([]string, error)
	// TLS has the node's certificate. Without a ServerName, servers must prove to be the host of their address.
	TLS *tls.Config
	Log *slog.Logger
}

// Client asks whoever serves a datastore. It tries the server that answered last, then all peers; Unavailable if none serves it.
type Client struct {
	c    ClientConfig
	http *http.Client

	mu   sync.Mutex
	last string            // the peer that served
	at   map[string]string // the peer that has a disk open for this node, of a datastore that is Spread
}

const (
	dialTime  = 3 * time.Second  // how long a host may take to accept a connection
	lostTime  = 15 * time.Second // how long a host may say nothing of what was sent to it
	whoTime   = 10 * time.Second // how long a peer may take to say whether it serves
	idleConns = 4
)

// NewClient makes a client. Close ends its idle connections.
func NewClient(c ClientConfig) *Client {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	config := c.TLS.Clone()
	config.MinVersion, config.NextProtos = tls.VersionTLS13, []string{"http/1.1"}
	d := net.Dialer{Timeout: dialTime, Control: userTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 3 * time.Second, Count: 3}}
	return &Client{c: c, http: &http.Client{Transport: &http.Transport{DialContext: d.DialContext, TLSClientConfig: config,
		TLSHandshakeTimeout: whoTime, MaxIdleConnsPerHost: idleConns, IdleConnTimeout: time.Minute, DisableCompression: true}}}
}

// userTimeout gives a host up that does not acknowledge what was sent (tcp(7)).
func userTimeout(_, _ string, raw syscall.RawConn) (err error) {
	cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(lostTime.Milliseconds()))
	})
	return errors.Join(err, cerr)
}

// Close ends idle connections. The next call makes new ones, with the certificate that the configuration gives then.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// errElsewhere marks the answer of a host that does not serve the datastore, or of none at all.
type errElsewhere struct{ error }

func (e errElsewhere) Unwrap() error { return e.error }

// ask has the server do something. body is a pointer to a request; its head is filled in.
func (c *Client) ask(ctx context.Context, path string, body interface{ common() *head }, result any) error {
	h := body.common()
	h.Datastore, h.Node = c.c.Datastore, c.c.Node
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	id, held := about(path, body)
	if last := c.known(id); last != "" {
		err := c.post(ctx, last, path, b, result)
		var elsewhere errElsewhere
		if !errors.As(err, &elsewhere) {
			if errors.Is(err, fault.Timeout) { // it may stand still, and another one serve: the next call asks all
				c.forget(last)
			}
			return err
		}
		c.c.Log.Debug("remote: the server is not there any more", "peer", last, "err", err)
	}
	peer, err := c.find(ctx, id, held)
	if err != nil {
		return err
	}
	err = c.post(ctx, peer, path, b, result)
	var elsewhere errElsewhere
	if errors.As(err, &elsewhere) {
		return elsewhere.error
	}
	return err
}

func (c *Client) forget(peer string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == peer {
		c.last = ""
	}
	maps.DeleteFunc(c.at, func(_, at string) bool { return at == peer })
}

// nobody is why no peer serves. If all refuse us the reason is ours.
func (c *Client) nobody(why []error) error {
	kind, remedy := fault.Unavailable, "Try again: another host takes it over, or look why none can."
	if len(why) > 0 && allAre(why, fault.Denied) {
		kind, remedy = fault.Denied, "Use a certificate of the cluster's authority that names this node."
	}
	var texts []string
	for _, err := range why {
		texts = append(texts, fault.From(err).Message)
	}
	if len(texts) == 0 {
		texts = []string{"no peer is known"}
	}
	return fault.New(kind, remedy, "nobody serves datastore %s: %s", c.c.Datastore, strings.Join(texts, "; "))
}

// post asks one peer. A failure of the peer itself is an errElsewhere.
func (c *Client) post(ctx context.Context, peer, path string, body []byte, result any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+peer+path, bytes.NewReader(body))
	if err != nil {
		return fault.New(fault.Invalid, "", "peer %q: %w", peer, err)
	}
	r.Header.Set("Content-Type", "application/json")
	a, err := c.http.Do(r)
	if err != nil {
		return lost(ctx, peer, err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(io.LimitReader(a.Body, maxAnswer+1))
	switch {
	case err != nil:
		return lost(ctx, peer, err)
	case len(b) > maxAnswer:
		return fault.New(fault.Internal, "", "%s sent too long an answer", peer)
	case a.StatusCode == http.StatusOK:
		return fault.Wrap(json.Unmarshal(b, result), "read the answer of %s", peer)
	}
	var f failure
	if json.Unmarshal(b, &f) != nil || f.Fault == nil {
		return errElsewhere{fault.New(fault.Unavailable, "Look what runs at this address.", "%s answered with status %d", peer, a.StatusCode)}
	}
	if a.StatusCode == statusElsewhere {
		return errElsewhere{fault.Wrap(f.Fault, "%s", peer)}
	}
	return f.Fault
}

// lost is what a broken connection means. What TLS refuses does not heal by itself.
func lost(ctx context.Context, peer string, err error) error {
	var op *net.OpError
	var verify *tls.CertificateVerificationError
	switch {
	case ctx.Err() != nil:
		return fault.New(fault.Timeout, "", "ask %s: %w", peer, context.Cause(ctx))
	case errors.As(err, &verify):
		return errElsewhere{fault.New(fault.Denied, "Use the authority that signed the server's certificate.", "%s is not who it should be: %w", peer, err)}
	case errors.As(err, &op) && op.Op == "remote error":
		return errElsewhere{fault.New(fault.Denied, "Use a certificate that the server's authority has signed.", "%s refused our certificate: %w", peer, err)}
	}
	return errElsewhere{fault.New(fault.Unavailable, "Look whether the host runs.", "%s: %w", peer, err)}
}
