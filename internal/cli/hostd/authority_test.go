package hostd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"slices"
	"testing"
	"time"
)

func testAuthority(t *testing.T, life time.Duration) *authority {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(life), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert: cert, key: k, node: "node-a", pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// handshake connects two configurations, and returns whom the server sees.
func handshake(t *testing.T, server, client *tls.Config) (name string, err error) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	seen := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			s := c.(*tls.Conn) //nolint:errcheck // of a tls listener
			if err = s.Handshake(); err == nil {
				name = s.ConnectionState().PeerCertificates[0].Subject.CommonName
			}
		}
		seen <- err
	}()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", l.Addr().String(), client)
	if err == nil {
		defer c.Close()
	}
	err = errors.Join(<-seen, err)
	return name, err
}

// Whoever has a certificate of the authority is known by its node; nobody else is let in, or trusted.
func TestCertificates(t *testing.T) {
	a, other := testAuthority(t, 365*24*time.Hour), testAuthority(t, 365*24*time.Hour)
	if name, err := handshake(t, a.config(), a.config()); err != nil || name != "node-a" {
		t.Fatalf("%q %v", name, err)
	}
	if _, err := handshake(t, a.config(), other.config()); err == nil {
		t.Error("a client of another authority was let in")
	}
	trusting := other.config()
	trusting.RootCAs = a.config().RootCAs
	if _, err := handshake(t, a.config(), trusting); err == nil {
		t.Error("a client with a certificate of another authority was let in")
	}
	none := a.config()
	none.GetClientCertificate = nil
	if _, err := handshake(t, a.config(), none); err == nil {
		t.Error("a client without a certificate was let in")
	}
}

// A certificate is made anew before it ends, and never outlives its authority.
func TestCertificatesAreRenewed(t *testing.T) {
	a := testAuthority(t, 365*24*time.Hour)
	now := time.Now()
	a.now = func() time.Time { return now }
	first, err := a.get()
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(certificateLife / 2)
	if same, err := a.get(); err != nil || same != first {
		t.Fatalf("a new one after half of its life: %v", err)
	}
	now = now.Add(certificateLife / 3)
	next, err := a.get()
	if err != nil || next == first || !next.until.Equal(now.Add(certificateLife)) {
		t.Fatalf("not renewed: %v %v", next, err)
	}
	if _, err := tls.X509KeyPair(next.cert, next.key); err != nil {
		t.Fatalf("what a worker is given: %v", err)
	}
	short := testAuthority(t, time.Hour)
	if c, err := short.get(); err != nil || c.until.After(short.cert.NotAfter) {
		t.Fatalf("it outlives its authority: %v %v", c, err)
	}
}

func TestPeers(t *testing.T) {
	p, err := parsePeers([]string{"a:1", "dns:all.svc:2", "own:1"}, "own:1")
	if err != nil {
		t.Fatal(err)
	}
	p.lookup = func(_ context.Context, name string) ([]string, error) {
		if name != "all.svc" {
			t.Errorf("looked up %q", name)
		}
		return []string{"10.0.0.2", "10.0.0.1", "fd00::1"}, nil
	}
	want := []string{"own:1", "a:1", "10.0.0.1:2", "10.0.0.2:2", "[fd00::1]:2"}
	if list, err := p.list(t.Context()); err != nil || !slices.Equal(list, want) {
		t.Errorf("%v %v, want %v", list, err, want)
	}
	p.lookup = func(context.Context, string) ([]string, error) { return nil, errors.New("no such host") }
	if list, err := p.list(t.Context()); err != nil || !slices.Equal(list, want[:2]) {
		t.Errorf("%v %v, want %v", list, err, want[:2])
	}
}
