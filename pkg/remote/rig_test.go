package remote_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

var ctx = context.Background()

const diskSize = 8 << 20

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// authority signs certificates.
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

type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(b))
	return len(b), nil
}

func logger(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return nil
	}
	return slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// rig is a LUN in a file, its owner, and nodes.
type rig struct {
	t    testing.TB
	path string
	ca   *authority
	maps san.Config

	mds    *mds
	stop   context.CancelFunc
	served chan error

	mu    sync.Mutex
	peers []string // control addresses, also of servers that are dead
}

func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigWith(t, san.Config{})
}

func newRigWith(t testing.TB, maps san.Config) *rig {
	t.Helper()
	r := &rig{t: t, path: filepath.Join(t.TempDir(), "lun"), ca: newAuthority(t), maps: maps}
	must(t, os.WriteFile(r.path, nil, 0o600), os.Truncate(r.path, 160<<20))
	lun := r.lun()
	_, err := store.Format(lun, store.FormatOptions{AreaSize: 1 << 20})
	must(t, err, lun.Close())
	r.start()
	t.Cleanup(func() {
		if r.mds != nil {
			r.kill()
		}
	})
	return r
}

func (r *rig) lun() fsx.File {
	r.t.Helper()
	f, err := fsx.OpenDevice(r.path, fsx.ReadWrite|fsx.Direct)
	must(r.t, err)
	return f
}

// start is a metadata server's beginning.
func (r *rig) start() {
	r.t.Helper()
	var err error
	r.mds, err = startMDS(r.lun(), r.maps)
	must(r.t, err)
	control, err := net.Listen("tcp", "127.0.0.1:0")
	must(r.t, err)
	blocks, err := net.Listen("tcp", "127.0.0.1:0")
	must(r.t, err)
	m := r.mds
	s := remote.NewServer(remote.ServerConfig{TLS: r.ca.config("mds"), NBDAddress: ":" + strconv.Itoa(blocks.Addr().(*net.TCPAddr).Port), Log: logger(r.t),
		Lookup: func(name string) (remote.Datastore, error) {
			if name != "lun" {
				return nil, fault.New(fault.Unavailable, "", "datastore %s is not here", name)
			}
			return m, nil
		}})
	var life context.Context
	life, r.stop = context.WithCancel(ctx)
	served := make(chan error, 1)
	r.served = served
	go func() { served <- s.Serve(life, control, blocks) }()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.peers = append(r.peers, control.Addr().String())
}

// kill ends the metadata server as a death does.
func (r *rig) kill() {
	r.t.Helper()
	r.stop()
	must(r.t, <-r.served, r.mds.die())
	r.mds = nil
}

func (r *rig) client(node string) remote.ClientConfig {
	return remote.ClientConfig{Datastore: "lun", Node: node, TLS: r.ca.config(node), Log: logger(r.t), Peers: func(context.Context) ([]string, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return append([]string(nil), r.peers...), nil
	}}
}

func (r *rig) api(node string) *remote.Client {
	c := remote.NewClient(r.client(node))
	r.t.Cleanup(c.Close)
	return c
}

// create makes a disk, thin or eagerly zeroed.
func (r *rig) create(name string, f host.DiskFormat) string {
	r.t.Helper()
	d, err := r.api("mds").Create(ctx, host.DiskSpec{Name: name, Datastore: "lun", Size: diskSize, Format: f, Type: host.MonolithicFlat})
	must(r.t, err)
	return d.ID
}

// states is what a disk told of itself.
type states struct {
	mu  sync.Mutex
	all []remote.State
}

func (s *states) add(x remote.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, x)
}

func (s *states) list() []remote.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]remote.State(nil), s.all...)
}

func (r *rig) config(id, node string) (remote.DiskConfig, *states) {
	s := &states{}
	return remote.DiskConfig{ClientConfig: r.client(node), Volume: id, Order: []string{remote.SAN, remote.NBD}, Changed: s.add,
		Retry: 20 * time.Millisecond, OpenLUN: func(context.Context, san.LUN) (fsx.File, error) {
			return fsx.OpenDevice(r.path, fsx.ReadWrite|fsx.Direct)
		}}, s
}

func (r *rig) open(c remote.DiskConfig) *remote.Disk {
	r.t.Helper()
	d, err := remote.OpenDisk(ctx, c)
	must(r.t, err)
	r.t.Cleanup(func() { _ = d.Close() })
	return d
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(limit) {
			t.Fatalf("waited too long: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func (r *rig) becomes(d *remote.Disk, transport string) {
	r.t.Helper()
	until(r.t, "the disk is reached by "+transport, func() bool { return d.State().Transport == transport })
}

func seed(t testing.TB) uint64 {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("SEED"); s != "" {
		var err error
		n, err = strconv.ParseUint(s, 10, 64)
		must(t, err)
	}
	t.Logf("SEED=%d", n)
	return n
}

// load writes a disk in random ways and verifies all that it reads, from several goroutines, until it is stopped.
type load struct {
	t     testing.TB
	want  []byte
	ops   atomic.Int64
	halt  chan struct{}
	wg    sync.WaitGroup
	once  sync.Once
	fails chan error
}

const loaders = 4

func startLoad(t testing.TB, d *remote.Disk) *load {
	l := &load{t: t, want: make([]byte, diskSize), halt: make(chan struct{}), fails: make(chan error, loaders)}
	s := seed(t)
	for i := range loaders {
		l.wg.Go(func() {
			part := int64(diskSize / loaders)
			from := int64(i) * part
			rng := mrand.New(mrand.NewPCG(s, uint64(i)))
			for {
				select {
				case <-l.halt:
					return
				default:
				}
				n := rng.Int64N(64<<10) + 1
				off := from + rng.Int64N(part-n)
				if err := l.step(d, rng, off, n); err != nil {
					l.fails <- err
					return
				}
				l.ops.Add(1)
			}
		})
	}
	t.Cleanup(func() { l.stop() })
	return l
}

func (l *load) step(d *remote.Disk, rng *mrand.Rand, off, n int64) error {
	mine := l.want[off : off+n]
	switch k := rng.IntN(20); {
	case k < 9:
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		copy(mine, p)
		_, err := d.WriteAt(p, off)
		return err
	case k < 17:
		p := make([]byte, n)
		if _, err := d.ReadAt(p, off); err != nil {
			return err
		}
		if !bytes.Equal(p, mine) {
			return fault.New(fault.Damaged, "", "%d bytes at %d are not what was written (%s)", n, off, d.State().Transport)
		}
		return nil
	case k == 17:
		clear(mine)
		return d.WriteZeroes(off, n)
	case k == 18:
		clear(mine)
		err := d.Discard(off, n)
		if errors.Is(err, fault.Unsupported) {
			err = d.WriteZeroes(off, n)
		}
		return err
	}
	return d.Flush()
}

// more waits until the load has done n more operations.
func (l *load) more(n int64) {
	l.t.Helper()
	to := l.ops.Load() + n
	until(l.t, "the load goes on", func() bool { return l.ops.Load() >= to || len(l.fails) > 0 })
	if len(l.fails) > 0 {
		l.t.Fatal(<-l.fails)
	}
}

func (l *load) stop() {
	l.once.Do(func() { close(l.halt) })
	l.wg.Wait()
}

// finish stops the load and compares everything.
func (l *load) finish(d *remote.Disk) {
	l.t.Helper()
	l.stop()
	if len(l.fails) > 0 {
		l.t.Fatal(<-l.fails)
	}
	got := make([]byte, diskSize)
	_, err := d.ReadAt(got, 0)
	must(l.t, err)
	if !bytes.Equal(got, l.want) {
		l.t.Error("the disk has not what was written")
	}
}

// stored compares what the owner has in its files, of a disk that nobody uses.
func (r *rig) stored(id string, want []byte) {
	r.t.Helper()
	s, err := r.mds.Open(ctx, id, "auditor", false)
	must(r.t, err)
	got := make([]byte, len(want))
	_, err = s.Export.Device.ReadAt(got, 0)
	must(r.t, err, r.mds.Close(ctx, id, "auditor"))
	if !bytes.Equal(got, want) {
		r.t.Error("the store has not what was written")
	}
}
