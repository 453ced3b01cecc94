package hostd

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// serverName is what every hostd proves to be besides its node: addresses of pods change, and whoever has a certificate of the
// authority is a hostd.
const serverName = "vmdk-hostd"

// certificateLife is how long a certificate is good; a third of it before its end it is made anew.
const certificateLife = 30 * 24 * time.Hour

// authority issues this hostd its certificates: their common name is the node's. Keys are in memory only.
type authority struct {
	cert *x509.Certificate
	pem  []byte // of cert
	key  crypto.PrivateKey
	node string
	now  func() time.Time // nil: time.Now

	mu      sync.Mutex
	current *issued
}

// issued is a certificate with its key.
type issued struct {
	tls       tls.Certificate
	cert, key []byte // PEM
	until     time.Time
}

// loadAuthority reads the certificate and the key of the authority, PEM files as in a Secret of type kubernetes.io/tls.
func loadAuthority(certPath, keyPath, node string) (*authority, error) {
	if certPath == "" || keyPath == "" {
		return nil, fault.New(fault.Invalid, "Set --tls-ca-cert and --tls-ca-key.", "hosts that share a LUN know each other by certificates, and there is no authority")
	}
	certPEM, err := os.ReadFile(certPath)
	if err != nil {
		return nil, fault.Wrap(err, "read the certificate authority")
	}
	keyPEM, err := os.ReadFile(keyPath)
	if err != nil {
		return nil, fault.Wrap(err, "read the certificate authority")
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err == nil && pair.Leaf == nil {
		pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0])
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "Give a certificate and its key as PEM.", "certificate authority in %s and %s: %w", certPath, keyPath, err)
	}
	if !pair.Leaf.IsCA {
		return nil, fault.New(fault.Invalid, "Give the certificate of an authority.", "the certificate in %s cannot sign others", certPath)
	}
	a := &authority{cert: pair.Leaf, pem: certPEM, key: pair.PrivateKey, node: node}
	_, err = a.get()
	return a, err
}

// get is the certificate of now.
func (a *authority) get() (*issued, error) {
	now := time.Now
	if a.now != nil {
		now = a.now
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current != nil && now().Before(a.current.until.Add(-certificateLife/3)) {
		return a.current, nil
	}
	fresh, err := a.issue(now())
	if err != nil {
		return nil, fault.Wrap(err, "issue a certificate for node %s", a.node)
	}
	a.current = fresh
	return fresh, nil
}

func (a *authority) issue(now time.Time) (*issued, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	until := now.Add(certificateLife)
	if a.cert.NotAfter.Before(until) {
		until = a.cert.NotAfter
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: a.node}, NotBefore: now.Add(-time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames: []string{serverName, "localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &issued{tls: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, until: until,
		cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})}, nil
}

// config is for both ends: it shows the certificate of the moment, and wants one of the same authority.
func (a *authority) config() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	get := func() (*tls.Certificate, error) {
		i, err := a.get()
		if err != nil {
			return nil, err
		}
		return &i.tls, nil
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: serverName, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return get() },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return get() },
	}
}
