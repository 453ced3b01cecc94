package lun_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/lun"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
)

// authority signs the certificates of machines.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t, pool: x509.NewCertPool()}
	a.cert, a.key = a.sign("ca", true)
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) sign(name string, ca bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	parent, parentKey := a.cert, a.key
	if ca {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
		parent, parentKey = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey)
	must(a.t, err)
	cert, err := x509.ParseCertificate(der)
	must(a.t, err)
	return cert, key
}

// config is for both ends.
func (a *authority) config(name string) *tls.Config {
	cert, key := a.sign(name, false)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}, RootCAs: a.pool, ClientCAs: a.pool,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13}
}

// clientConfig is how the machine asks.
func (m *machine) clientConfig() remote.ClientConfig {
	return remote.ClientConfig{Datastore: "lun", Node: m.name, TLS: m.tls, Log: m.log, Peers: func(context.Context) ([]string, error) {
		m.r.mu.Lock()
		defer m.r.mu.Unlock()
		return append([]string(nil), m.r.peers...), nil
	}}
}

// listen serves other machines until the test, or the machine, ends.
func (m *machine) listen() {
	t := m.r.t
	t.Helper()
	control, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	blocks, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	m.r.mu.Lock()
	m.r.peers = append(m.r.peers, control.Addr().String())
	m.r.mu.Unlock()
	s := remote.NewServer(remote.ServerConfig{TLS: m.tls, NBDAddress: blocks.Addr().String(), Log: m.log,
		Lookup: func(string) (remote.Datastore, error) { return m.owner.Lookup() }})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(ctx, control, blocks); err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	m.mute = func() { cancel(); <-done }
}

// workers serve disks in this process, to nobody but the test.
type workers struct {
	m *machine

	mu   sync.Mutex
	live map[string]*worker
}

func (w *workers) Start(ctx context.Context, spec lun.WorkerSpec, _ *os.File) (lun.Worker, error) {
	c := remote.DiskConfig{ClientConfig: w.m.clientConfig(), Volume: spec.ID, ReadOnly: spec.ReadOnly, Order: spec.Order, Retry: 50 * time.Millisecond,
		OpenLUN: func(ctx context.Context, l san.LUN) (fsx.File, error) {
			f, _, err := lunpath.Open(ctx, w.m.r.path, lunpath.Options{ReadWrite: true}.Want(l))
			return f, err
		}}
	d, err := remote.OpenDisk(ctx, c)
	if err != nil {
		return nil, err
	}
	one := &worker{Disk: d}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.live == nil {
		w.live = map[string]*worker{}
	}
	w.live[spec.ID] = one
	return one, nil
}

// disk is an attached one.
func (m *machine) disk(id string) *worker {
	m.workers.mu.Lock()
	defer m.workers.mu.Unlock()
	return m.workers.live[id]
}

// end closes what tests left open.
func (w *workers) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, one := range w.live {
		_ = one.Close()
	}
}

type worker struct{ *remote.Disk }

func (w *worker) Stop(context.Context) error { return w.Close() }
func (w *worker) Kill() error                { _ = w.Close(); return nil }
func (w *worker) PidFD() (*os.File, error) {
	return nil, fault.New(fault.Unavailable, "", "no process")
}

func (w *worker) State() lun.WorkerState {
	st := w.Disk.State()
	out := lun.WorkerState{PID: os.Getpid(), Transport: st.Transport, Size: st.Size}
	for _, s := range st.Skipped {
		out.Skipped = append(out.Skipped, host.NotUsed(s.Transport, s.Reason))
	}
	return out
}
