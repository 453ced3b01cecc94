package nbd

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"os"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// ServerTLS is the configuration of a server that takes clients of the authorities in the file ca, and no others. All are PEM files.
func ServerTLS(cert, key, ca string) (*tls.Config, error) {
	c, pool, err := loadTLS(cert, key, ca)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{c}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13}, nil
}

// ClientTLS is the configuration of a client that trusts servers of the authorities in the file ca, if they prove to be serverName.
func ClientTLS(cert, key, ca, serverName string) (*tls.Config, error) {
	c, pool, err := loadTLS(cert, key, ca)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{c}, RootCAs: pool, ServerName: serverName, MinVersion: tls.VersionTLS13}, nil
}

func loadTLS(cert, key, ca string) (c tls.Certificate, pool *x509.CertPool, err error) {
	if cert == "" || key == "" || ca == "" {
		return c, nil, fault.New(fault.Invalid, "Name a certificate, its key, and the authorities of the other side.", "NBD on a network needs TLS on both sides")
	}
	if c, err = tls.LoadX509KeyPair(cert, key); err != nil {
		return c, nil, fault.New(fault.Invalid, "Give a certificate and its key as PEM files.", "certificate %s with key %s: %w", cert, key, err)
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return c, nil, fault.New(fault.Invalid, "Give the authorities' certificates as a PEM file.", "%w", err)
	}
	pool = x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return c, nil, fault.New(fault.Invalid, "Give the authorities' certificates as a PEM file.", "%s has no certificate", ca)
	}
	return c, pool, nil
}

// Fingerprint is what a ticket is bound to: the SHA-256 of a certificate, in hexadecimal digits.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}
