package nbd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Authority signs certificates for tests.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.sign("ca", true)
	return a
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// Sign makes NAME-cert.pem and NAME-key.pem, as GnuTLS's programs call them.
func (a *authority) sign(name string, ca bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	parent, parentKey := a.cert, a.key
	if ca {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage, template.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	b, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(name+"-cert.pem", "CERTIFICATE", der)
	a.write(name+"-key.pem", "PRIVATE KEY", b)
	return cert, key
}

func (a *authority) write(name, kind string, b []byte) {
	a.t.Helper()
	if err := os.WriteFile(a.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *authority) client(name string) *tls.Config {
	a.t.Helper()
	c, err := ClientTLS(a.path(name+"-cert.pem"), a.path(name+"-key.pem"), a.path("ca-cert.pem"), "localhost")
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// ServeTLS serves r on the loopback interface.
func (a *authority) serve(r Resolver, log *slog.Logger) (server *Server, address string) {
	a.t.Helper()
	a.sign("server", false)
	config, err := ServerTLS(a.path("server-cert.pem"), a.path("server-key.pem"), a.path("ca-cert.pem"))
	if err != nil {
		a.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		a.t.Fatal(err)
	}
	server = NewServer(r, ServerOptions{TLS: config, Log: log})
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	a.t.Cleanup(func() {
		_ = server.Close(context.Background())
		if err := <-ended; err != nil {
			a.t.Error(err)
		}
	})
	return server, l.Addr().String()
}

func connectTLS(t *testing.T, address, export string, config *tls.Config) (*Client, error) {
	t.Helper()
	c, err := Connect(t.Context(), ClientOptions{Network: "tcp", Address: address, TLS: config, Export: export, Patience: time.Second})
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// LogBuffer is a log that a test looks through.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestTickets(t *testing.T) {
	a := newAuthority(t)
	mine, _ := a.sign("node1", false)
	a.sign("node2", false)
	disk := block.Memory(1 << 20)
	var log logBuffer
	var opened, later atomic.Int64
	begin := time.Now()
	tickets := NewTickets(func(context.Context, Grant) (*Export, error) {
		opened.Add(1)
		return &Export{Device: disk, MultiConn: true}, nil
	}, TicketOptions{Now: func() time.Time { return begin.Add(time.Duration(later.Load())) }})
	server, address := a.serve(tickets, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	grant := Grant{Volume: "vd-1", Node: "node1", Fingerprint: Fingerprint(mine), Write: true}
	k, err := tickets.Issue(grant)
	if err != nil {
		t.Fatal(err)
	}
	if len(k.Name()) != 26 {
		t.Errorf("the ticket has %d letters", len(k.Name()))
	}
	asJSON, _ := json.Marshal(map[string]any{"ticket": k})
	for _, shown := range []string{fmt.Sprint(k), fmt.Sprintf("%v %+v %#v %s", k, k, k, k), string(asJSON), slog.AnyValue(k).Resolve().String()} {
		if strings.Contains(shown, k.Name()) {
			t.Errorf("the secret is shown: %s", shown)
		}
	}
	for what, try := range map[string]struct {
		name string
		tls  *tls.Config
	}{
		"another certificate": {k.Name(), a.client("node2")},
		"no ticket":           {"", a.client("node1")},
		"a guess":             {strings.Repeat("A", 26), a.client("node1")},
		"no TLS":              {k.Name(), nil},
		"a stranger":          {k.Name(), newAuthority(t).strangerOf(a)},
	} {
		if _, err := connectTLS(t, address, try.name, try.tls); !errors.Is(err, fault.Denied) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if use, _ := tickets.Use(k); use.Uses != 0 || opened.Load() != 0 {
		t.Errorf("used by whom it is not for: %+v", use)
	}
	c, err := connectTLS(t, address, k.Name(), a.client("node1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteAt([]byte{7}, 0); err != nil {
		t.Fatal(err)
	}
	if use, _ := tickets.Use(k); use.Uses != 4 || use.Open != 4 {
		t.Errorf("%+v", use)
	}
	later.Add(int64(time.Hour)) // it is in use, and does not expire
	if !tickets.Revoke(k) {
		t.Error("it was not there to be revoked")
	}
	until(t, "the connections are closed", func() bool { return server.Connections() == 0 })
	if _, err := c.ReadAt(make([]byte, 1), 0); !errors.Is(err, fault.Denied) {
		t.Errorf("a read with a revoked ticket: %v", err)
	}
	late, err := tickets.Issue(grant)
	if err != nil {
		t.Fatal(err)
	}
	later.Add(int64(2 * time.Minute))
	if _, err := connectTLS(t, address, late.Name(), a.client("node1")); !errors.Is(err, fault.Denied) {
		t.Errorf("an expired ticket: %v", err)
	}
	if strings.Contains(log.String(), k.Name()) || strings.Contains(log.String(), late.Name()) {
		t.Errorf("a secret is in the log:\n%s", log.String())
	}
}

// StrangerOf is a client that trusts the other authority and was signed by this one.
func (a *authority) strangerOf(other *authority) *tls.Config {
	a.sign("stranger", false)
	c := a.client("stranger")
	c.RootCAs = other.client("server").RootCAs
	return c
}

func TestTicketForReading(t *testing.T) {
	a := newAuthority(t)
	mine, _ := a.sign("node1", false)
	tickets := NewTickets(func(context.Context, Grant) (*Export, error) { return &Export{Device: block.Memory(1 << 20)}, nil }, TicketOptions{})
	_, address := a.serve(tickets, nil)
	if _, err := tickets.Issue(Grant{Volume: "vd-1", Snapshot: "vs-1", Write: true, Fingerprint: "x"}); !errors.Is(err, fault.Invalid) {
		t.Errorf("a snapshot for writing: %v", err)
	}
	k, err := tickets.Issue(Grant{Volume: "vd-1", Snapshot: "vs-1", Node: "node1", Fingerprint: Fingerprint(mine)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := connectTLS(t, address, k.Name(), a.client("node1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteAt([]byte{1}, 0); !errors.Is(err, fault.ReadOnly) {
		t.Errorf("write: %v", err)
	}
	if n := tickets.RevokeNode("", "node2"); n != 0 {
		t.Errorf("%d tickets of another node", n)
	}
	if n := tickets.RevokeNode("vd-1", "node1"); n != 1 {
		t.Errorf("%d tickets of the node", n)
	}
}

// The server was started anew and knows no old ticket: the client asks for another and goes on.
func TestNewTicketAfterRestart(t *testing.T) {
	a := newAuthority(t)
	mine, _ := a.sign("node1", false)
	disk := block.Memory(1 << 20)
	tickets := NewTickets(func(context.Context, Grant) (*Export, error) { return &Export{Device: disk}, nil }, TicketOptions{})
	_, address := a.serve(tickets, nil)
	c, err := Connect(t.Context(), ClientOptions{Network: "tcp", TLS: a.client("node1"), Find: func(context.Context) (string, string, error) {
		k, err := tickets.Issue(Grant{Volume: "vd-1", Write: true, Fingerprint: Fingerprint(mine)})
		return address, k.Name(), err
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.WriteAt([]byte{7}, 0); err != nil {
		t.Fatal(err)
	}
	if n := tickets.RevokeNode("", ""); n != 1 {
		t.Fatalf("%d tickets", n)
	}
	b := make([]byte, 1)
	if _, err := c.ReadAt(b, 0); err != nil || b[0] != 7 {
		t.Errorf("%v, %v", b, err)
	}
}
