package remotetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// Authority signs certificates.
type Authority struct {
	CA []byte // PEM

	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t}
	a.CA, _ = a.Sign("authority")
	return a
}

// Sign makes a certificate of name and its key, as PEM; the first one is the authority's own.
func (a *Authority) Sign(name string) (cert, key []byte) {
	a.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), DNSNames: []string{ServerName}, KeyUsage: x509.KeyUsageDigitalSignature}
	parent, parentKey := a.cert, a.key
	if parent == nil {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, parentKey, a.key = c, k, k
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, k.Public(), parentKey)
	must(a.t, err)
	if a.cert == nil {
		a.cert, err = x509.ParseCertificate(der)
		must(a.t, err)
	}
	b, err := x509.MarshalPKCS8PrivateKey(k)
	must(a.t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})
}
